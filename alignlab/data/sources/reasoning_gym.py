"""Prompts that reasoning-gym makes, with answers that can be checked: as many as one wants."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Annotated, Any

from alignlab.annotations import Range
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.data.sources.source import check_limit, check_split
from alignlab.data.sources.splits import hashed
from alignlab.data.wording import folded
from alignlab.errors import ConfigError, did_you_mean

VERSION = 1  # part of the fingerprint: raise it when the same fields give other groups
PACKAGE = "reasoning-gym"
PROMPTS = ("unlabeled", "preference")  # splits whose answers a policy gives


@dataclass(frozen=True, kw_only=True)
class ReasoningGym:
    """Procedural tasks of the package reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760).

    Of every task ``size`` prompts are made from ``seed``; copies are left out, and a hash of the
    prompt says which split each is in, so none is in two. ``meta`` holds the answer and the place
    of the entry, from which `alignlab.rewards.reasoning_gym.ReasoningGymScore` makes it again.
    Prompts for training have no completions; ``sft`` and held-out prompts show the answer.
    """

    tasks: Mapping[str, Mapping[str, Any]]  # name of a task -> its options
    seed: int
    size: Annotated[int, Range(min=1)]
    validation: float
    test: float
    limit: Mapping[str, int | None]

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if not self.tasks:
            raise ConfigError("data.tasks is empty. Name a task: data.tasks.basic_arithmetic={}")
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise ConfigError("validation and test must be shares that leave rows to train on.")

    def fingerprint(self) -> str:
        """Hash of the fields and of the package's version, which may make other tasks."""
        _package()
        return fingerprint_of([], (PACKAGE, VERSION, version(PACKAGE), self))

    def load(self, split: str) -> list[PromptGroup]:
        """Return the groups of one split; see :meth:`stream`."""
        return list(self.stream(split))

    def stream(self, split: str) -> Iterator[PromptGroup]:
        """Yield the groups of one split, task by task; made when they are asked for.

        Raises:
            ConfigError: the package is missing, or it does not know a task or an option.
        """
        check_split(split)
        most = self.limit.get(split)
        for number, group in enumerate(self._groups(split)):
            if most is not None and number >= most:
                return
            yield group

    def _groups(self, split: str) -> Iterator[PromptGroup]:
        wanted = {"pretrain_validation": "validation"}.get(split, split)
        held_out = wanted in ("validation", "test")
        seen: set[str] = set()
        for task, options in self.tasks.items():
            written = json.dumps(dict(options), sort_keys=True)
            made = dataset(task, written, self.seed, self.size)
            for index in range(self.size):
                entry = made[index]
                key = folded(entry["question"])
                if key in seen or self._home(key) != (wanted if held_out else ""):
                    continue
                if entry["answer"] is None and split not in PROMPTS:
                    continue  # several answers are right, and none is given to show
                seen.add(key)
                place = {"task": task, "options": written, "seed": self.seed, "index": index}
                yield _group(entry, place, self.size, split)

    def _home(self, key: str) -> str:
        """The held-out split of a prompt, or "" for training."""
        value = hashed("split", key)
        if value < self.test:
            return "test"
        return "validation" if value < self.test + self.validation else ""


def _group(entry: Mapping[str, Any], place: dict[str, Any], size: int, split: str) -> PromptGroup:
    question, answer = entry["question"], entry["answer"]
    name = f"{place['task']}-{place['seed']}-{place['index']}"
    meta = {"answer": answer, "gym": {**place, "size": size}, "place": f"{PACKAGE} {name}"}
    if split.startswith("pretrain"):
        return PromptGroup("", (f"{question}\n\n{answer}",), DEMONSTRATION, name, meta)
    if split in PROMPTS:
        return PromptGroup(f"{question}\n\n", id=name, meta=meta)
    return PromptGroup(f"{question}\n\n", (answer,), DEMONSTRATION, name, meta)


@lru_cache(maxsize=64)
def dataset(task: str, options: str, seed: int, size: int) -> Any:
    """One task of the package; its entries are a function of these arguments and their index.

    Raises:
        ConfigError: the package is missing, or it does not know the task or an option.
    """
    gym = _package()
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        hint = did_you_mean(task, DATASETS)
        raise ConfigError(f"data.tasks: reasoning-gym has no task '{task}'.{hint}")
    try:
        return gym.create_dataset(task, seed=seed, size=size, **json.loads(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"data.tasks.{task}: {error}") from error


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError(
            f"data=reasoning_gym needs the package {PACKAGE} ({error}). Install it: pip install "
            "'alignlab[reasoning]'"
        ) from error
    return reasoning_gym
