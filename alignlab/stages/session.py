"""What the stages share: opening models and data, packing a step, keeping the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from alignlab import interruption
from alignlab.data.batch import TokenBatch
from alignlab.data.gate.gate import check, require
from alignlab.data.mapped import completion_counts, sizes_of
from alignlab.data.order import step_rows, steps_of
from alignlab.data.pack import flatten, fullness, group_tokens, pack
from alignlab.data.steps import TokenSteps, shown
from alignlab.engine.work import Micro
from alignlab.run import Store
from alignlab.stages.packed import Packed

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from alignlab.data.batch import Batch
    from alignlab.data.gate.gate import Finding, Limits, Need
    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.data.prepared import Prepared, Select
    from alignlab.data.sources.source import Source
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone, View
    from alignlab.models.load import BackboneConfig
    from alignlab.run import Run
    from alignlab.stages.packed import Late, Metrics

PACKED = 20  # steps that the record's packing is the mean of


def open_backbone(
    config: BackboneConfig,
    run: Run,
    engine: Engine,
    seed: int,
    base: Path | None = None,
    *,
    shared: bool = False,
) -> Backbone:
    """Load the base model named by ``config`` (or the model folder ``base``) on the device.

    For a stage that all processes work on (``shared``), each keeps its share of the weights at
    ZeRO 3.
    """
    from alignlab.engine.sharded import placing, require_stage
    from alignlab.models.backbone import Backbone

    if shared:
        require_stage(config.adapter, engine)
    device, place = engine.workers().device, placing(engine) if shared else None
    backbone = Backbone.load(config, cache_of(run), device, base=base, seed=seed, place=place)
    layout, reason = backbone.layout
    run.update_record(layout=layout, layout_reason=reason, dtype=backbone.dtype_name)
    return backbone


def tokenize(
    data: Source,
    split: str,
    tokenization: Tokenization,
    run: Run,
    engine: Engine,
    *,
    need: Need,
    limits: Limits | None = None,
    held_out: Sequence[str] = (),
    select: Select | None = None,
    rows: int | None = None,
) -> Prepared:
    """Tokens of one split of ``data``, through the gate: errors stop, warnings are recorded.

    They are kept in the store by content, so another run on the same rows finds them. ``held_out``
    are the splits whose prompts must not occur in this one; ``select`` is applied to every group
    (None leaves it out) and ``rows`` is the most that are taken.
    """
    from alignlab.data.prepared import prepare

    tokens = prepare(
        data,
        split,
        tokenization,
        cache_of(run),
        need=need,
        limits=limits,
        held_out=held_out,
        select=select,
        rows=rows,
        workers=engine.data_workers,
    )
    heed(tokens.findings, run)
    if tokens.card is not None:
        run.update_record(data_card=tokens.card)
    return tokens


def keep_card(data: Source, run: Run, limits: Limits | None = None) -> None:
    """Write what was done to the rows that were read so far into the run record.

    Rows that were left out are recorded as a warning, and too large a share of them stops the run.
    """
    from alignlab.data.gate.left_out import left_out
    from alignlab.data.sources.source import SPLITS, Carded

    if isinstance(data, Carded) and (card := data.card()):
        run.update_record(data_card=card)
    heed(left_out(data, SPLITS, limits), run)


def inspect(
    groups: Sequence[PromptGroup],
    tokens: Sequence[TokenGroup],
    tokenization: Tokenization,
    run: Run,
    *,
    need: Need,
    limits: Limits | None = None,
    held_out: Mapping[str, Iterable[PromptGroup]] | None = None,
    sampled: bool = False,
) -> None:
    """Run the data gate over groups at hand that a stage is about to train on.

    ``held_out`` are the splits whose prompts must not occur in ``groups``; ``sampled`` completions
    come from a policy, so being cut off is no fault of the data; ``limits`` say from which share
    of the rows on a finding counts.
    """
    tokenizer = tokenization.tokenizer
    found = check(
        groups, tokens, tokenizer, need=need, other=held_out, sampled=sampled, limits=limits
    )
    heed(found, run)


def heed(findings: Sequence[Finding], run: Run) -> None:
    """Record warnings, and stop at errors."""
    for finding in findings:
        if finding.severity == "warning":
            run.warn(f"data: {finding.message} ({finding.counted()})")
    require(findings)


def cache_of(run: Run) -> Path:
    """Cache folder of the store that ``run`` is in."""
    return Store(run.path.parent).cache


class Memory(Protocol):
    """Something that a training carries from step to step beside the weights that it trains."""

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint must hold of it."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        ...


@dataclass(frozen=True)
class OfflineWork:
    """A training stage over a fixed list of prompt groups; a pure function of (seed, step).

    ``count`` gives the number of loss units in a step's groups and ``loss_of`` the sum of unit
    losses of one micro-batch divided by it, so neither packing nor accumulation can change it.
    ``statistics``, if given, computes what must be known about the whole step before its first
    micro-batch (KTO's KL point), as tensors handed to every micro-batch. With ``late_of``, a step
    that is a single micro-batch finds them in the pass that trains, and a pass is saved.
    """

    groups: Sequence[TokenGroup]
    batch: Batch  # of an optimizer step, in prompts or in tokens
    seed: int
    engine: Engine
    view: str
    count: Callable[[Sequence[TokenGroup]], float]
    loss_of: Callable[[View, Packed], tuple[Tensor, Metrics]]
    statistics: Callable[[Sequence[TokenGroup]], Mapping[str, Tensor]] | None = None
    extra_of: Callable[[Sequence[TokenGroup]], Mapping[str, Tensor]] | None = None
    late_of: Callable[[Sequence[TokenGroup]], Late] | None = None
    memory: Memory | None = None  # what is carried from step to step, if anything
    neftune_alpha: float | None = None  # noise on the embeddings, None = none

    @cached_property
    def by_tokens(self) -> TokenSteps | None:
        """Where every step ends, if steps are cut by their tokens."""
        if not isinstance(self.batch, TokenBatch):
            return None
        return TokenSteps(sizes_of(self.groups), self.batch.tokens, self.seed)

    def rows(self, step: int) -> list[int]:
        """Rows of optimizer step ``step`` (from 1), of all ranks."""
        if self.by_tokens is not None:
            return self.by_tokens.rows(step - 1)
        return step_rows(step - 1, cast("int", self.batch), len(self.groups), self.seed)

    def chosen(self, step: int) -> list[TokenGroup]:
        """Groups of optimizer step ``step`` (from 1), of all ranks."""
        return [self.groups[r] for r in self.rows(step)]

    def steps_of(self, epochs: float) -> int:
        """Optimizer steps that show every group ``epochs`` times."""
        if self.by_tokens is not None:
            return self.by_tokens.steps_of(epochs)
        return steps_of(epochs, cast("int", self.batch), len(self.groups))

    def counts(self, steps: int) -> dict[str, int]:
        """Prompts and completions of the first ``steps`` steps, each as often as it is shown."""
        end = self.by_tokens.end(steps) if self.by_tokens else steps * cast("int", self.batch)
        times = shown(len(self.groups), self.seed, end)
        return {"prompts": end, "completions": int(times @ completion_counts(self.groups))}

    def micros(self, step: int) -> list[Micro]:
        """Micro-batches of ``step`` on this rank, packed to the engine's token budget."""
        from alignlab.models.noise import noise_of

        workers = self.engine.workers()
        chosen = self.chosen(step)
        mine, rows = workers.share(chosen), workers.share(self.rows(step))
        packed = list(parts(mine, self.engine.budget))
        late, statistics = None, {}
        if self.late_of is not None and workers.world == len(packed) == 1:
            late = self.late_of(packed[0][1])
        elif self.statistics is not None:
            statistics = dict(self.statistics(chosen))
        return [
            Micro(
                view=self.view,
                data=Packed(
                    batch=flatten(part).to(workers.device),
                    groups=tuple(part),
                    count=self.count(chosen),
                    extra={**statistics, **(dict(self.extra_of(part)) if self.extra_of else {})},
                    noise=noise_of(self.neftune_alpha, self.seed, step, [rows[p] for p in places]),
                    late=late,
                ),
                tokens=sum(group_tokens(g) for g in part),
                label="rows " + ", ".join(str(g.row) for g in part[:8]),
            )
            for places, part in packed
        ]

    def packing(self, steps: int) -> dict[str, float]:
        """How full the micro-batches of the first steps are, for the run record."""
        share = self.engine.workers().share  # each process packs what it is dealt
        sizes = (
            np.array(list(map(group_tokens, share(self.chosen(step)))), dtype=np.int64)
            for step in range(1, min(steps, PACKED) + 1)
        )
        found = fullness(sizes, self.engine.budget)
        return {name: round(value, 4) for name, value in asdict(found).items()}

    def loss(self, view: View, micro: Micro) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch, already divided by the units of the whole step."""
        return self.loss_of(view, micro.data)

    def state(self) -> dict[str, Any]:
        """What is carried along; the data order is a function of (seed, step)."""
        return {} if self.memory is None else dict(self.memory.state())

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what is carried along."""
        if self.memory is not None:
            self.memory.load_state(state)


def parts(
    groups: Sequence[TokenGroup], budget: int
) -> Iterator[tuple[list[int], list[TokenGroup]]]:
    """Positions and groups of micro-batches of at most ``budget`` tokens, read one by one.

    A group larger than the budget stands alone. Between two of them a signal is heeded.
    """
    for positions in pack([group_tokens(g) for g in groups], budget):
        interruption.check()
        yield positions, [groups[i] for i in positions]


def split(groups: Sequence[TokenGroup], budget: int) -> list[list[TokenGroup]]:
    """Pack groups into micro-batches, as `parts`, without their positions."""
    return [part for _, part in parts(groups, budget)]
