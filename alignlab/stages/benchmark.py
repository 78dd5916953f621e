"""Benchmarks: one policy, loaded once, asked by any number of tasks; a number for every item."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, build
from alignlab.stages.stage import POLICY_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.evaluation.policy import Policy, Usage
    from alignlab.evaluation.task import Better, Result
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class Benchmark(Stage):
    """Held-out text, exact match, instructions, refusals, multiple choice, lm-eval: any tasks.

    Rows are {task, metric, item, value} and, where it is not 1, the weight of the row in the
    metric's mean. Items are the same for every policy, so the report shows each metric as a paired
    difference against SFT. The record says which way each metric is better.
    """

    kind: ClassVar[str] = "benchmark"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {"policy": Role((*POLICY_KINDS, "pretrain"))}

    backbone: BackboneConfig
    tasks: Mapping[str, Spec]
    max_prompt: Annotated[int, Range(min=2)] | None

    def validate(self) -> None:
        """There is something to do, and names that make plain keys."""
        if not self.tasks:
            raise ConfigError(
                "tasks: none. Add one: +task@stages.benchmark.tasks.gsm8k=exact_match"
            )
        for name in self.tasks:
            if "/" in name or ":" in name:
                raise ConfigError(f"tasks.{name}: a task's name has no '/' and no ':'.")

    def fingerprint(self) -> str:
        """Fingerprint of the base model's files and of what every task reads."""
        found = [f"{n} {build(s).fingerprint()}" for n, s in sorted(self.tasks.items())]
        return " ".join([super().fingerprint(), *found])

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Ask the policy all tasks; write their rows and the means.

        Interrupted and run again, it does not ask a task again that was finished. Of several
        processes each computes its share of what a task asks.
        """
        from alignlab.engine.dealt import Dealt, served
        from alignlab.evaluation.policy import Policy
        from alignlab.models.templates import template_hash
        from alignlab.stages.session import open_backbone

        workers = engine.workers()
        run = workers.own(run)
        backbone = open_backbone(self.backbone, run, engine, self.seed, shared=True)
        backbone.add("policy", source=inputs["policy"].model_dir, trainable=False)
        dealt = Dealt(backbone, workers, engine.budget)
        policy = Policy(dealt, "policy", self.max_prompt, self.seed)
        if workers.is_main:
            for name in ("samples.jsonl", "metrics.jsonl"):  # of an interrupted attempt
                (run.path / name).unlink(missing_ok=True)
        rows: list[dict[str, Any]] = []
        better: dict[str, Better] = {}
        notes: dict[str, Any] = {}
        for task, spec in self.tasks.items():
            with served(backbone):
                result = once(run.state_dir / f"{task}.task", spec, policy)
            for row in result.rows:
                rows.append(row.to_mapping(task))
                better[key_of(rows[-1])] = result.direction(row)
            notes[task] = {"target": spec.target, **result.notes}
            for warning in result.warnings:
                run.warn(warning)
        for line in rows:
            run.sample(line)
        summary = means(rows)
        made_by = inputs["policy"].record
        run.update_record(
            label=self.label or made_by.get("label") or inputs["policy"].kind,
            template=template_hash(backbone.tokenizer),
            policy=inputs["policy"].path.name,
            tasks=notes,
            better=better,
            summary=summary,
            **costs(policy.usage, backbone.parameter_counts("policy")[0]),
        )
        run.log(0, summary, split="summary")

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampled tokens at the length limits, and a guess of those that are scored."""
        from alignlab.stages.estimate import sampling_estimate

        tokens = sum(build(spec).tokens for spec in self.tasks.values())
        return sampling_estimate(self.backbone, cache, tokens=tokens, row=self.max_prompt or 0)


def once(file: Path, spec: Spec, policy: Policy) -> Result:
    """Ask a task, or take its result from the ``file`` that an interrupted session kept it in.

    The file is the main process's, which tells the others.
    """
    workers = policy.dealt.workers
    kept = workers.from_main(file.read_bytes() if workers.is_main and file.is_file() else None)
    result: Result
    if kept is not None:
        result, spent = pickle.loads(kept)  # of a file of this run's own
        policy.usage.add(spent)
        return result
    before = replace(policy.usage)
    result = build(spec).run(policy)
    if workers.is_main:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps((result, policy.usage.since(before))))
        temporary.replace(file)
    return result


def key_of(row: Mapping[str, Any]) -> str:
    """Name of a metric in the summary: ``task/metric``."""
    return f"{row['task']}/{row['metric']}"


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Weighted mean of every metric of every task over its rows."""
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        weight = float(row.get("weight", 1.0))
        total = sums[key_of(row)]
        total[0] += weight * float(row["value"])
        total[1] += weight
    return {name: value / weight for name, (value, weight) in sums.items()}


def costs(usage: Usage, params: int) -> dict[str, Any]:
    """What the tasks cost, as the record keeps it: 2 FLOPs per parameter and token."""
    return {
        "prompts": usage.prompts,
        "completions": usage.completions,
        "tokens_sampled": usage.sampled,
        "tokens_scored": usage.scored,
        "params_total": params,
        "flops": 2.0 * params * (usage.sampled + usage.scored),
    }
