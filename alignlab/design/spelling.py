"""Names of the points of a design: short, and legal in file names, in W&B and on a command line."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_ODD = re.compile(r"[^A-Za-z0-9._+-]+")


def spelled(value: Any) -> str:
    """Write a value for a name: ``0.03``, ``1e-5``, ``mean``, ``true``, ``0.9-0.95``."""
    if isinstance(value, float):
        return re.sub(r"e([+-])0+(?=\d)", r"e\1", f"{value:g}").replace("e+", "e")
    if isinstance(value, str):
        return _ODD.sub("-", value).strip("-") or "-"
    if isinstance(value, Sequence):
        return "-".join(spelled(item) for item in value) or "none"
    if isinstance(value, Mapping):
        named = [str(v).rpartition(".")[2] for k, v in value.items() if k == "_target_"]
        rest = [f"{k}-{spelled(v)}" for k, v in value.items() if k != "_target_"]
        return "-".join([*named, *rest]) or "none"
    return json.dumps(value)  # null, true, 3


def spelled_apart(values: Sequence[Any]) -> list[str]:
    """Write values so that no two look the same: those that do are numbered."""
    texts = [spelled(value) for value in values]
    count = Counter(texts)
    return [f"{t}-{i}" if count[t] > 1 else t for i, t in enumerate(texts, start=1)]
