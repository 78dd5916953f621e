"""Work without gradients, dealt out: each process samples and scores its share, all know all.

What comes out is that of one process: a prompt's samples depend on its seed alone, and what a pass
gives for a prompt depends on no other prompt, up to the rounding of another batch's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from alignlab import interruption
from alignlab.data.pack import flatten, group_tokens, pack
from alignlab.engine.stopping import together
from alignlab.models.sharding import deepspeed_here
from alignlab.models.view import blank

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Workers
    from alignlab.models.backbone import Backbone
    from alignlab.models.view import View
    from alignlab.rollout.rollout import Rollout
    from alignlab.rollout.sampling import Sampling
    from alignlab.tensors import FlatBatch

T = TypeVar("T")

SLAB = 4096  # prompts of a process whose tokens are held, and whose outputs are gathered, at a time


@dataclass(frozen=True)
class Dealt:
    """The views of a backbone that nothing trains, asked by all processes of a job together.

    Every process calls every method with the same arguments.
    """

    backbone: Backbone
    workers: Workers
    token_budget: int

    def sample(
        self,
        view: str,
        prompts: Sequence[TokenGroup],
        tokenization: Tokenization,
        sampling: Sampling,
        n: int,
        seed: int,
        keep: Path | None = None,
    ) -> Rollout:
        """Sample ``n`` completions of this process's share of ``prompts`` (see `Workers.share`).

        A signal is heeded on all processes; ``keep`` is a file of this one (`sampler.sample`).
        """
        from alignlab.rollout.rollout import occurrences, sample_rollout

        share = self.workers.share
        mine, earlier = share(prompts), share(occurrences(prompts))
        asked = (tokenization, sampling, n, seed, 0, earlier)

        def here() -> Rollout:
            with self.backbone.view(view) as active:
                return sample_rollout(active, mine, *asked, keep)

        return together(self.workers, here)

    def read(
        self,
        view: str,
        mine: Sequence[TokenGroup],
        read: Callable[[View, FlatBatch], Sequence[T]],
    ) -> list[list[T]]:
        """What ``read`` gives for each completion of this process's groups, without gradients.

        ``read`` returns one item per completion of its micro-batch. Where processes hold shares of
        the weights (`served`), each is gathered where it is used, and a process with fewer
        micro-batches than another reads blank ones.
        """
        bins = pack([group_tokens(group) for group in mine], self.token_budget)
        sharding = self.backbone.sharding
        shared = sharding is not None and sharding.weights
        [passes] = self.workers.highest(len(bins)) if shared else [len(bins)]
        out: dict[int, list[T]] = {}

        def here() -> None:
            with torch.no_grad(), self.backbone.view(view, alike=True) as active:
                for number in range(passes):
                    if number >= len(bins):
                        read(active, blank(self.workers.device))
                        continue
                    if not shared:  # else no process leaves while others gather
                        interruption.check()
                    part = [mine[place] for place in bins[number]]
                    pieces = iter(read(active, flatten(part).to(self.workers.device)))
                    for place, group in zip(bins[number], part, strict=True):
                        out[place] = [next(pieces) for _ in group.completions]

        if shared:
            here()
        else:
            together(self.workers, here)
        return [out[place] for place in range(len(mine))]

    def shared(
        self,
        view: str,
        groups: Sequence[TokenGroup],
        read: Callable[[View, FlatBatch], Sequence[T]],
    ) -> list[list[T]]:
        """What ``read`` gives for each completion of ``groups``, which every process knows.

        The passes are shared out; every process gets all that came of them, in order.
        """
        slab = SLAB * self.workers.world
        found: list[list[T]] = []
        for start in range(0, len(groups), slab):
            mine = self.workers.share(groups[start : start + slab])
            found += self.workers.whole(self.read(view, mine, read))
        return found

    def numbers(
        self,
        view: str,
        groups: Sequence[TokenGroup],
        read: Callable[[View, FlatBatch], Sequence[float]],
    ) -> Tensor:
        """`shared`, of one number per completion: (C,) float32, in order, on the device."""
        found = [number for group in self.shared(view, groups, read) for number in group]
        return torch.tensor(found, dtype=torch.float32, device=self.workers.device)

    def logps(
        self, view: str, mine: Sequence[TokenGroup], temperature: float = 1.0
    ) -> list[list[np.ndarray]]:
        """Log-probabilities (L,) float32, nats, of the targets of every completion."""
        return self.read(view, mine, partial(target_logps, temperature=temperature))

    def scores(self, view: str, mine: Sequence[TokenGroup]) -> list[list[float]]:
        """Scalar of every completion."""
        return self.read(view, mine, scalars)


def target_logps(view: View, batch: FlatBatch, temperature: float = 1.0) -> list[np.ndarray]:
    """Log-probabilities (L,) float32, nats, of the targets of every completion of a batch."""
    return per_completion(view.logps(batch, temperature=temperature).float(), batch)


def scalars(view: View, batch: FlatBatch) -> list[float]:
    """Scalar of every completion of a batch."""
    found: list[float] = view.scores(batch).float().tolist()
    return found


def per_completion(values: Tensor, batch: FlatBatch) -> list[np.ndarray]:
    """Values (N,) of a flat batch's targets, cut into those of each completion."""
    ends = np.cumsum(batch.lengths.cpu().numpy())[:-1]
    return np.split(values.cpu().numpy(), ends)


@contextmanager
def served(backbone: Backbone) -> Iterator[None]:
    """Let passes gather weights that are in shares (ZeRO 3) module by module, while inside.

    All views must be there. Outside of it, and for sampling, a view is gathered as a whole.
    """
    if backbone.place is None:
        yield
        return
    sharding = backbone.shard(weights=True)
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_reuse_distance": 0,
        "memory_efficient_linear": False,
        **({} if torch.cuda.is_available() else {"stage3_prefetch_bucket_size": 0}),
    }
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero}
    engine, *_ = deepspeed_here().initialize(model=sharding.container, config=config)
    sharding.run = engine
    try:
        yield
    finally:
        backbone.sharding = None
        engine.destroy()
