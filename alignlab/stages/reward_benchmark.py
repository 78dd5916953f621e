"""Benchmarks of a reward model: accuracy by subset, calibration, and what it makes of length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from alignlab.errors import ConfigError
from alignlab.evaluation.pairs import PairSet
from alignlab.models.load import BackboneConfig
from alignlab.rewards.apart import Apart, stands_apart
from alignlab.spec import build
from alignlab.stages.stage import Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.rewards.apart import Encodes
    from alignlab.run import Run

ANNOTATED = "annotated"  # name of the pairs that the annotations keep for validation


@dataclass(frozen=True, kw_only=True)
class RewardBenchmark(Stage):
    """Order preference pairs by a reward run, as RewardBench does (Lambert et al. 2024).

    Rows are {task, item, value, margin, …}: value is 1 where the better completion scores higher,
    0.5 at a tie. With an ``annotations`` input its validation split is one more set, on the very
    tokens that were annotated. Calibration is that of σ(margin on the scale that was trained),
    before scores were normalised.
    """

    kind: ClassVar[str] = "reward_benchmark"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "reward": Role(("reward",)),
        "annotations": Role(("annotate",), optional=True),
    }

    backbone: BackboneConfig
    sets: Mapping[str, PairSet]
    max_prompt: Annotated[int, Range(min=2)] | None
    max_completion: Annotated[int, Range(min=1)] | None

    def validate(self) -> None:
        """There are pairs, and names that make plain keys."""
        if not self.sets and "annotations" not in self.inputs:
            raise ConfigError(
                "sets: none, and no inputs.annotations either. Add a file of pairs:"
                " +pairs@stages.NAME.sets.hh=file stages.NAME.sets.hh.data.path=FILE"
            )
        for name in self.sets:
            if "/" in name or ":" in name or name == ANNOTATED:
                raise ConfigError(
                    f"sets.{name}: a name has no '/' and no ':', and '{ANNOTATED}' is taken."
                )

    def accept(self, inputs: Mapping[str, Stage]) -> None:
        """A function in the place of a reward model has no tokens that pairs could be read in."""
        if getattr(inputs["reward"], "backbone", None) is None:
            raise ConfigError(
                "inputs.reward is a reward function. It measures its accuracy on annotations by"
                " itself; a benchmark needs a reward model."
            )

    def fingerprint(self) -> str:
        """Fingerprint of the base model's files and of every set's data."""
        found = [f"{n} {build(s.data).fingerprint()}" for n, s in sorted(self.sets.items())]
        return " ".join([super().fingerprint(), *found])

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Score all completions; write a row per pair and what the rows say together.

        Of several processes each scores its share of the prompts.
        """
        from alignlab.data.pack import group_tokens
        from alignlab.data.template import Tokenization
        from alignlab.engine.dealt import Dealt, scalars, served
        from alignlab.evaluation.pairs import rows_of, summarise
        from alignlab.models.templates import template_hash
        from alignlab.stages.session import open_backbone

        workers = engine.workers()
        run = workers.own(run)
        judge = inputs["reward"]
        own: Encodes | None = None
        if stands_apart(judge.model_dir):
            apart = Apart.open(judge, workers.device)
            backbone, own = apart.backbone, apart.encoding
            tokenization = own
        else:
            backbone = open_backbone(self.backbone, run, engine, self.seed, shared=True)
            backbone.add("reward", source=judge.model_dir, trainable=False, head=True)
            cut = self.max_prompt, self.max_completion
            tokenization = Tokenization(backbone.tokenizer, *cut)
        with backbone.view("reward") as view:
            gain = float(view.scalar_head.gain)
        rows: list[dict[str, Any]] = []
        scored: list[TokenGroup] = []
        dealt = Dealt(backbone, workers, engine.budget)
        with served(backbone):
            for task, (groups, subsets) in self.load(inputs, tokenization, run, own).items():
                found = dealt.shared("reward", groups, scalars)
                scores = [score for part in found for score in part]
                rows += rows_of(task, groups, scores, gain, subsets)
                scored += groups
        if workers.is_main:
            for name in ("samples.jsonl", "metrics.jsonl"):  # of an interrupted attempt
                (run.path / name).unlink(missing_ok=True)
        for row in rows:
            run.sample(row)
        summary = summarise(rows, gain)
        params, tokens = backbone.parameter_counts("reward")[0], sum(map(group_tokens, scored))
        run.update_record(
            label=self.label or inputs["reward"].record.get("label") or "reward model",
            template=template_hash(backbone.tokenizer),
            reward=inputs["reward"].path.name,
            gain=gain,
            prompts=len(scored),
            completions=sum(len(group.completions) for group in scored),
            tokens_scored=tokens,
            params_total=params,
            flops=2.0 * params * tokens,
            summary=summary,
        )
        run.log(0, summary, split="summary")

    def load(
        self,
        inputs: Mapping[str, Run],
        tokenization: Encodes,
        run: Run,
        again: Encodes | None = None,
    ) -> dict[str, tuple[list[TokenGroup], list[str]]]:
        """Token groups of every set, and the subset of each group.

        ``again`` encodes annotated texts, where their tokens are not the reward run's own.
        """
        from alignlab.stages.annotate import read

        found: dict[str, tuple[list[TokenGroup], list[str]]] = {}
        if "annotations" in inputs:
            held_out = read(inputs["annotations"], "validation", again)
            kept = [g for g in held_out if g.verdict.pairs()]
            if kept:
                found[ANNOTATED] = kept, [""] * len(kept)
            else:
                run.warn(f"{inputs['annotations'].name} keeps no ordered pair for validation")
        for name, pairs in self.sets.items():
            texts = pairs.load(name)
            groups = tokenization.groups(texts)
            cut = sum(any(g.truncated) or "prompt_cut" in g.meta for g in groups)
            if cut:
                run.warn(f"{name}: {cut} of {len(groups)} prompts or their completions were cut")
            found[name] = groups, [pairs.subset_of(g.meta) for g in texts]
        return found

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Two completions of every pair at the length limits, where both are known."""
        from alignlab.stages.estimate import sampling_estimate

        pairs = sum(s.items or 0 for s in self.sets.values())
        row = (self.max_prompt or 0) + (self.max_completion or 0)
        group = row + (self.max_completion or 0)
        return sampling_estimate(self.backbone, cache, tokens=pairs * group, group=group, row=row)
