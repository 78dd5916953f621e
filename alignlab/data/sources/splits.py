"""Which split a prompt is in: a pure hash of it, so that no prompt moves when rows are added."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from alignlab.data.group import PromptGroup
from alignlab.data.rows.listing import split_named
from alignlab.data.wording import content, folded, identity
from alignlab.errors import DataError


def hashed(purpose: str, key: str) -> float:
    """A number in [0, 1) from a key; each purpose has its own independent numbers."""
    return int(hashlib.sha256(f"{purpose}:{key}".encode()).hexdigest()[:12], 16) / 16**12


def key_of(group: PromptGroup, split_by: str | None) -> str:
    """What must not fall into two splits: a prompt, for texts the text, or the value of a field.

    Prompts that differ in case or white space alone are one.
    """
    if split_by is not None:
        return json.dumps([split_by, group.meta[split_by]])
    answers = [content(completion) for completion in group.completions]
    return json.dumps(folded(identity(content(group.prompt), answers)))


def value_of(row: Mapping[str, Any], split_by: str) -> str | int | float | bool:
    """Return the field by which a row is split.

    Raises:
        DataError: the row has no such value, or one that is a list or an object.
    """
    value = row.get(split_by)
    if isinstance(value, (str, int, float)):
        return value
    kind = "missing" if value is None else f"a {type(value).__name__}"
    known = ", ".join(row)
    raise DataError(
        f"'{split_by}', by which data.split_by divides the rows, is {kind}; the fields are {known}."
        " Give every row a text or a number there, or set data.split_by=null."
    )


def assign(values: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """Return the split of each row, (rows,) of names: by the hash of its key, else ``train``.

    Only where a split with a positive share would be empty does it get the nearest train key.

    Raises:
        DataError: too few distinct keys to hold any out.
    """
    names = np.array([*shares, "train"])
    home = names[np.searchsorted(np.cumsum(list(shares.values())), values, side="right")]
    for name, share in shares.items():
        if share > 0 and not (home == name).any():
            train = values[home == "train"]
            if len(np.unique(train)) < 2:
                raise DataError(
                    f"{len(np.unique(values))} distinct prompts cannot be cut into train and "
                    f"{', '.join(shares)}. Add rows, or set data.validation=0 data.test=0."
                )
            home[values == train.min()] = name
    return home


def is_official_test(name: str) -> bool:
    """Whether a file or a split of the hub is named for a test: test*, eval*; not if also train."""
    own = re.split(r"[/\\]", name)[-1]
    return split_named(own) == ("test",)


def refuse_official_test(name: str, split: str) -> None:
    """Say why a test set is not trained on, and how to do it all the same."""
    raise DataError(
        f"'{name}' is named as a test set, and '{split}' is what a model learns from: results on "
        "that set, here and in every paper that reports it, would mean nothing. Name the training "
        "rows instead; give test rows as data.test_path (data=file) or data.splits.test "
        "(data=hub). If the name misleads, or this is what you study: data.allow_test=true."
    )
