"""Passes without gradients over rows that all processes know: each process makes its share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from stage_lab import Chain
from torch import Tensor

from alignlab.data.group import TokenGroup
from alignlab.engine import dealt
from alignlab.engine.distributed import Workers
from alignlab.models.backbone import Backbone, View
from alignlab.stages.annotate import read
from alignlab.stages.reference import ReferenceLogps, completion_sums
from alignlab.stages.reward import scores_of
from alignlab.stages.sft import mean_nll


class Threads(Workers):
    """Processes that are threads of this one, and exchange what they gather over a barrier."""

    def __init__(self, of: Workers, rank: int, items: list[Any], gate: threading.Barrier) -> None:
        self.__dict__.update(copy(of).__dict__)
        self.rank, self.world, self.is_main = rank, len(items), rank == 0
        self.items, self.gate = items, gate

    def gather(self, item: Any) -> list[Any]:
        self.items[self.rank] = item
        self.gate.wait(60)
        found = list(self.items)
        self.gate.wait(60)
        return found

    def max(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather(values)).amax(0)


@dataclass(frozen=True)
class Engine:
    """What these passes ask of an engine."""

    own: Workers
    budget: int = 90

    def workers(self) -> Workers:
        return self.own


Asked = Callable[[Backbone, Sequence[TokenGroup], Any], Any]


def reference(chain: Chain) -> Asked:
    def asked(backbone: Backbone, groups: Sequence[TokenGroup], engine: Any) -> Any:
        cache = chain.lab.store.cache
        return ReferenceLogps(backbone, chain.sft, engine, cache).compute(groups)

    return asked


@pytest.mark.parametrize("slab", [4096, 3])
@pytest.mark.parametrize("name", ["reference", "completion_sums", "scores_of", "mean_nll"])
def test_every_process_makes_its_share_of_the_passes_and_knows_all(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, name: str, slab: int
) -> None:
    ask: Asked = {
        "reference": reference(chain),
        "completion_sums": lambda *of: completion_sums(of[0], "reference", *of[1:]),
        "scores_of": lambda *of: scores_of(of[0], "reward", *of[1:]),
        "mean_nll": lambda *of: mean_nll(of[0], "reference", *of[1:]),
    }[name]
    monkeypatch.setattr(dealt, "SLAB", slab)
    seen: dict[int, list[int]] = {}
    for method in ("logps", "scores"):
        monkeypatch.setattr(View, method, noting(getattr(View, method), seen))
    groups = read(chain.annotations, "train")[:9]

    def answer(workers: Workers, backbone: Backbone) -> tuple[Any, list[int]]:
        seen[threading.get_ident()] = rows = []
        return ask(backbone, groups, Engine(workers)), rows

    alone = chain.lab.engine.workers()
    backbones = [opened(chain) for _ in range(2)]  # transformers reads no two models at a time
    one, everything = answer(alone, backbones[0])
    assert sorted(everything) == [group.row for group in groups]
    gate, items = threading.Barrier(2), [None, None]
    processes = [Threads(alone, rank, items, gate) for rank in range(2)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(answer, processes, backbones))
    for rank, (other, rows) in enumerate(found):
        assert_close(other, one)
        if slab > len(groups):
            assert sorted(rows) == [group.row for group in groups[rank::2]]
    assert sorted(found[0][1] + found[1][1]) == sorted(everything)
    assert abs(len(found[0][1]) - len(found[1][1])) <= 1


def opened(chain: Chain) -> Backbone:
    """The frozen reference and the reward model."""
    stage, _ = chain.online("ppo")
    backbone = Backbone.load(stage.backbone, chain.lab.store.cache)
    backbone.add("reference", source=chain.sft.model_dir, trainable=False)
    backbone.add("reward", source=chain.reward.model_dir, trainable=False, head=True)
    return backbone


def noting(method: Any, seen: dict[int, list[int]]) -> Any:
    """A pass of a view that also notes whose rows it is about."""

    def noted(view: View, batch: Any, **options: Any) -> Tensor:
        seen[threading.get_ident()] += batch.rows.tolist()
        assert not torch.is_grad_enabled()
        found: Tensor = method(view, batch, **options)
        return found

    return noted


def assert_close(one: Any, other: Any) -> None:
    if isinstance(one, list):
        assert len(one) == len(other)
        one, other = (torch.cat([torch.from_numpy(x) for x in of]) for of in (one, other))
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-5, atol=1e-5)
