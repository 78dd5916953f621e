"""One run folder as it stands on disk: record, configuration, environment, rows.

Reads files only and imports nothing heavy. What cannot be read is noted in `RunFolder.gaps`, for
the page to list.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = {  # field of a policy's configuration → how a table writes it
    "objective.beta": "β", "objective.tau": "τ", "objective.weight": "λ", "objective.normalize": "",
    "objective.gamma_beta_ratio": "γ/β", "objective.label_smoothing": "ε", "kl_coef": "β",
    "group": "G", "ptx_coef": "ptx", "optimizer.learning_rate": "lr", "epochs": "epochs",
    "iterations": "iterations", "steps": "steps",
}  # fmt: skip
COUNTS = ("epochs", "iterations", "steps")
NOT_SCIENCE = ("seed", "inputs", "label", "tracking", "engine", "launch")


@dataclass(frozen=True)
class RunFolder:
    """One run as it stands on disk; ``gaps`` says what could not be read."""

    name: str
    path: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    env: Mapping[str, Any]
    done: bool
    gaps: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Stage kind: ``sft-0ab1`` → ``sft``."""
        return str(self.record.get("kind") or self.name.rsplit("-", 1)[0])

    @property
    def label(self) -> str:
        """Name for people: the recorded label, else the kind."""
        return str(self.record.get("label") or self.kind)

    @property
    def inputs(self) -> Mapping[str, str]:
        """Role → name of the run that filled it."""
        found = self.record.get("inputs")
        return {k: str(v) for k, v in found.items() if v} if isinstance(found, Mapping) else {}

    def number(self, key: str) -> float | None:
        """Return a recorded number, or None when it is absent or not finite."""
        value = number(self.record.get(key))
        return value if math.isfinite(value) else None

    def lines(self, file: str) -> list[dict[str, Any]]:
        """Rows of a ``.jsonl`` file; a torn last line (a killed writer) is left out."""
        return list(read_lines(self.path / file))


def number(value: Any) -> float:
    """Return ``value`` as a float, NaN for anything that is not a number."""
    return float(value) if isinstance(value, int | float) else math.nan


def prompt_key(row: Mapping[str, Any]) -> str:
    """Return what identifies a prompt across methods: its id, else its text."""
    return str(row.get("prompt_id") or row.get("prompt") or "")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; nothing when it does not exist."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def read_run(name: str, root: Path) -> RunFolder:
    """Read one run folder; whatever is absent becomes an entry of ``gaps``."""
    path = root / name
    gaps: list[str] = []

    def load(*files: str) -> Mapping[str, Any]:
        for file in files:
            if (path / file).is_file():
                try:
                    return _parse(path / file)
                except ValueError as error:
                    gaps.append(f"{file} cannot be read ({error})")
                    return {}
        gaps.append(f"{files[0]} is missing")
        return {}

    record = load("record.json")
    config = load("config.json", "config.yaml", "stage.json")
    return RunFolder(
        name, path, record, config, load("env.json"), (path / "DONE").is_file(), tuple(gaps)
    )


def _parse(path: Path) -> Mapping[str, Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    else:
        data = json.loads(text)
    if not isinstance(data, Mapping):
        raise ValueError("not a mapping")
    return data


def science(value: Any) -> Any:
    """A configuration without what may differ between seeds of one method."""
    if isinstance(value, Mapping):
        return {str(k): science(v) for k, v in sorted(value.items()) if k not in NOT_SCIENCE}
    return [science(v) for v in value] if isinstance(value, list) else value


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mapping → ``{"objective.beta": 0.1}``; targets and list items become plain values."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def show(value: Any) -> str:
    """Write a hyperparameter for a table: ``5e-5``, ``0.1``, ``mean``."""
    return (
        re.sub(r"e([+-])0+(?=\d)", r"e\1", f"{value:g}") if isinstance(value, float) else str(value)
    )


def settings_of(config: Mapping[str, Any]) -> str:
    """Name a run by its few hyperparameters: ``β 0.1 · mean · lr 5e-5 · 2 epochs``."""
    flat = {k.replace(".arguments.", "."): v for k, v in flatten(config).items()}
    parts = []
    for key, name in SETTINGS.items():
        value = flat.get(key)
        if value is None or isinstance(value, bool | list):
            continue
        if key in COUNTS:
            if key != "epochs" or flat.get("steps") is None:
                parts.append(f"{show(value)} {name if value != 1 else name[:-1]}")
        elif value != 0:
            parts.append(f"{name} {show(value)}".strip())
    return " · ".join(part.replace(" ", "\u00a0") for part in parts)
