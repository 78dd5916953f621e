"""Preference rows in any number, all different, with the lengths of human dialogues.

A row keeps the turns of one HH-RLHF dialogue (how many, how long, who speaks) and fills them with
sentences drawn from those dialogues and from film reviews. Some words get a spelling of their own,
as names, numbers and typing errors do, so that new words go on coming as they do in natural text.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
NOVEL = 0.012  # share of words with a spelling of their own, see README.md
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def dialogues(folder: Path) -> list[dict[str, str]]:
    """HH-RLHF rows (chosen, rejected) of the files in ``folder``."""
    files = sorted((folder / "hh-rlhf").glob("*.jsonl*"))
    if not files:
        raise SystemExit(f"No hh-rlhf/*.jsonl or .jsonl.gz in {folder}; give --data-dir.")
    rows = []
    for file in files:
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rt", encoding="utf-8") as lines:
            rows += [json.loads(line) for line in lines]
    return rows


def reviews() -> list[str]:
    """Texts of the film reviews that alignlab is installed with."""
    import yaml

    from alignlab.compose import conf_dir
    from alignlab.data.sources.reviews import Reviews

    values = yaml.safe_load((conf_dir() / "data" / "reviews.yaml").read_text(encoding="utf-8"))
    del values["_target_"]
    return [str(group.completions[0]) for group in Reviews(**values).load("pretrain")]


class Writer:
    """Rows by number; row n is the same whatever was written before."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.shapes = [shape_of(row) for row in dialogues(folder)]
        texts = [piece for row in dialogues(folder) for piece in turns(row["chosen"])[1]]
        texts += reviews()
        self.sentences = [s for text in texts for s in _SENTENCE.split(text) if s.strip()]

    def row(self, number: int) -> dict[str, str]:
        """Prompt, chosen and rejected of row ``number``."""
        draw = random.Random(f"{self.seed}:{number}")
        speakers, lengths, chosen, rejected = draw.choice(self.shapes)
        said = [
            f"\n\n{who}: {self.text(draw, length)}"
            for who, length in zip(speakers, lengths, strict=True)
        ]
        return {
            "prompt": "".join(said) + "\n\nAssistant:",
            "chosen": " " + self.text(draw, chosen),
            "rejected": " " + self.text(draw, rejected),
        }

    def text(self, draw: random.Random, length: int) -> str:
        """Sentences of about ``length`` characters."""
        parts: list[str] = []
        while sum(map(len, parts)) + len(parts) < length:
            parts.append(draw.choice(self.sentences))
        words = " ".join(parts)[: max(length, 1)].split(" ")
        for place, word in enumerate(words):
            if draw.random() < NOVEL:
                words[place] = word + "".join(draw.choices(LETTERS, k=3))
        return " ".join(words).strip() or "ok"


def turns(transcript: str) -> tuple[list[str], list[str]]:
    """Speakers and what they said."""
    pieces = _TURN.split(transcript)[1:]
    return pieces[::2], [text.strip() for text in pieces[1::2]]


def shape_of(row: dict[str, str]) -> tuple[list[str], list[int], int, int]:
    """Speakers and characters of the turns before the last one; characters of both last ones."""
    speakers, said = turns(row["chosen"])
    last = turns(row["rejected"])[1][-1]
    return speakers[:-1], [len(text) for text in said[:-1]], len(said[-1]), len(last)


def write(path: Path, writer: Writer, numbers: Sequence[int]) -> None:
    """Write rows as JSON lines, once; a finished file is used again."""
    if path.is_file():
        return
    beside = path.with_suffix(".part")
    with beside.open("w", encoding="utf-8") as file:
        for number in numbers:
            file.write(json.dumps(writer.row(number), ensure_ascii=False) + "\n")
    beside.replace(path)


def sample(rows: int, count: int) -> Iterator[int]:
    """Row numbers on which both sides must have the same ids: evenly over all, first and last."""
    yield from sorted({round(i * (rows - 1) / max(count - 1, 1)) for i in range(count)})


def answer(path: Path, values: Any) -> None:
    """Write what a measuring process found, for the one that started it."""
    path.write_text(json.dumps(values), encoding="utf-8")
