"""Rows for the tests of the quality steps, and a refined source made from conf/."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from alignlab.compose import compose
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.quality.refined import Refined
from alignlab.spec import build, parse

WORDS = ("river", "stone", "bright", "window", "morning", "carry", "simple", "garden", "yellow")


def passage(seed: int, length: int = 40) -> str:
    """A text of random words, its own for every seed."""
    source = random.Random(seed)
    return " ".join(source.choice(WORDS) + str(source.randint(0, 500)) for _ in range(length))


def rows(*texts: str, prompt: str = "p") -> list[PromptGroup]:
    """Demonstrations with these completions; ids are their places."""
    return [
        PromptGroup(f"{prompt} {i}", (text,), DEMONSTRATION, str(i), {"place": f"line {i + 1}"})
        for i, text in enumerate(texts)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def refined(path: str, *overrides: str) -> Refined:
    """What ``data=refined data.source.path=PATH`` and the overrides make."""
    node = compose(["data=refined", f"data.source.path={path}", *overrides])["data"]
    return build(parse(node, "data"))
