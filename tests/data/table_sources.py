"""Sources of the tests as conf/data/*.yaml would make them."""

from __future__ import annotations

import json
from pathlib import Path

from alignlab.data.sources.file import File
from alignlab.data.sources.hub import Hub

COMMON = {
    "format": "auto",
    "style": "as_is",
    "turns": "all",
    "fields": {},
    "weights": {},
    "split_by": None,
    "validation": 0.05,
    "test": 0.05,
    "unlabeled": 0.0,
    "sft": 0.5,
    "share": True,
    "allow_test": False,
    "limit": {},
    "bad_rows": "refuse",
}
OWN = {
    File: {"path": "", "validation_path": None, "test_path": None, "encoding": "utf-8"},
    Hub: {
        "id": "x/y",
        "config": None,
        "revision": None,
        "splits": {"train": "train"},
        "streaming": False,
    },
}


def source(cls=File, **changes):
    return cls(**{**COMMON, **OWN[cls], **changes})


def write(path, rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def prompts(data, split):
    return {group.prompt for group in data.load(split)}
