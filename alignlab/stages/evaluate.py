"""Evaluation: score a policy's own samples with rewards that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.errors import ConfigError
from alignlab.models.load import BackboneConfig
from alignlab.rewards.ensemble import Ensemble
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build
from alignlab.stages.stage import POLICY_KINDS, Estimate, Role, Stage, filling
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.engine.dealt import Dealt
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.rollout.rollout import Rollout
    from alignlab.rollout.thoughts import Thought
    from alignlab.run import Run
    from alignlab.stages.online import Scorer


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Gold, audit and proxy reward, KL to the reference, length and forgetting on held-out prompts.

    The KL is the mean of log π(y|x) − log π_ref(y|x) over the policy's own samples, in nats per
    sequence, unclamped, at the sampling temperature. ``best_of`` > 1 samples that many completions
    per prompt and keeps the one with the highest proxy reward; its KL is at most log n − (n−1)/n.
    """

    version: ClassVar[int] = 6  # decoding rounds otherwise
    kind: ClassVar[str] = "evaluate"
    together: ClassVar[bool] = True
    sees: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "policy": Role((*POLICY_KINDS, "pretrain")),
        "reference": Role(("sft", "continued_pretrain", "pretrain", "merge")),
        "reward": Role(("reward",), optional=True, many=True),
    }

    backbone: BackboneConfig
    data: Spec
    gold: Spec
    audit: Spec | None
    ensemble: Ensemble
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    split: Literal["validation", "test"]
    prompts: Annotated[int, Range(min=1)]
    samples: Annotated[int, Range(min=1)]
    best_of: Annotated[int, Range(min=1)]
    sampling: Sampling

    def validate(self) -> None:
        """Best-of-n selects by the proxy reward, so it needs one."""
        if self.best_of > 1 and not filling("reward", self.inputs):
            raise ConfigError("inputs.reward is missing: best_of > 1 selects by a reward run.")

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write one row per sample to ``samples.jsonl`` and the means to the record.

        Of several processes each samples and scores its share of the prompts.
        """
        from alignlab.data.template import Tokenization
        from alignlab.engine.dealt import Dealt, served
        from alignlab.models.templates import template_hash
        from alignlab.rollout.unfinished import rollout_file
        from alignlab.stages.session import keep_card

        workers = engine.workers()
        run = workers.own(run)
        backbone, scorer = self.opened(inputs, run, engine)
        limits = self.max_prompt, self.max_completion
        tokenization = Tokenization(backbone.tokenizer, *limits, processor=backbone.processor)
        data = build(self.data)
        groups = data.load(self.split)[: self.prompts]
        keep_card(data, run)
        dealt = Dealt(backbone, workers, engine.budget)
        rollout = dealt.sample(
            "policy",
            tokenization.prompts(groups),
            tokenization,
            self.sampling,
            self.samples * self.best_of,
            self.seed,
            keep=rollout_file(run.state_dir, workers.rank),
        )
        with served(backbone):
            found = self.measured(dealt, scorer, rollout, tokenization)
            mine = self.rows(workers.share(groups), rollout, found)
            rows = [row for part in workers.whole(mine) for row in part]
            nll = self.forgetting(dealt, groups, tokenization)
        if workers.is_main:
            for name in ("samples.jsonl", "metrics.jsonl"):  # of an interrupted attempt
                (run.path / name).unlink(missing_ok=True)
        for row in rows:
            run.sample(row)
        summary = means(rows, ("gold", "audit", "proxy", "kl", "tokens", "finished"))
        summary |= {**thinking_summary(rows), "reference_nll": nll}
        summary["reference_gold"] = self.reference_gold(groups)
        policy = inputs["policy"].record
        tokens = int(sum(workers.gather(rollout.tokens)))
        params, _ = backbone.parameter_counts("policy")
        run.update_record(
            label=self.label or self.name(str(policy.get("label") or inputs["policy"].kind)),
            best_of=self.best_of,
            template=template_hash(backbone.tokenizer),
            policy=inputs["policy"].path.name,
            reference=inputs["reference"].path.name,
            prompts=len(groups),
            completions=len(groups) * self.samples * self.best_of,
            tokens_sampled=tokens,
            params_total=params,
            flops=2.0 * params * tokens,
            gold={"target": self.gold.target, **dict(self.gold.arguments)},
            summary=summary,
        )
        run.log(0, {k: v for k, v in summary.items() if v is not None}, split="summary")

    def opened(
        self, inputs: Mapping[str, Run], run: Run, engine: Engine
    ) -> tuple[Backbone, Scorer]:
        """All models of the stage as views of one backbone."""
        from alignlab.stages.online import Scorer
        from alignlab.stages.session import open_backbone

        backbone = open_backbone(self.backbone, run, engine, self.seed, shared=True)
        backbone.add("policy", source=inputs["policy"].model_dir, trainable=False)
        backbone.add("reference", source=inputs["reference"].model_dir, trainable=False)
        rewards = [inputs[name] for name in filling("reward", inputs)]
        texts = cache(lambda: build(self.data).load(self.split)[: self.prompts])
        return backbone, Scorer(backbone, rewards, None, engine, self.ensemble, texts=texts)

    def name(self, policy: str) -> str:
        """Short name for tables: that of the policy, or of the control that it is sampled for."""
        if self.best_of == 1:
            return policy
        return f"best of {self.best_of}" + ("" if policy == "SFT" else f" ({policy})")

    def measured(
        self, dealt: Dealt, scorer: Scorer, rollout: Rollout, tokenization: Tokenization
    ) -> Measured:
        """What models say of this process's samples; every process asks all of them.

        Log-ratios log π − log π_ref are of whole sequences, both by the same forward pass. What
        best of n keeps is no sample of a policy whose log-ratio would be a KL.
        """
        from alignlab.rollout.thoughts import thoughts_of

        groups, proxy, kl = rollout.groups, None, None
        if scorer.judges.names:
            proxy = scorer(rollout).numpy()
        if self.best_of == 1:
            temperature = self.sampling.temperature or 1.0
            policy = chain(*dealt.logps("policy", groups, temperature))
            reference = chain(*dealt.logps("reference", groups, temperature))
            pairs = zip(policy, reference, strict=True)
            kl = [float((a.astype(float) - b.astype(float)).sum()) for a, b in pairs]
        return Measured(proxy, kl, thoughts_of(rollout, tokenization))

    def rows(
        self, groups: Sequence[PromptGroup], rollout: Rollout, measured: Measured
    ) -> list[list[dict[str, object]]]:
        """For each prompt one mapping per kept sample, as the report reads them."""
        from alignlab.data.thinking import split
        from alignlab.rewards.reward import known_of, prompt_text
        from alignlab.rewards.thinking import graded

        if not groups:
            return []
        per, proxy, kl = self.samples * self.best_of, measured.proxy, measured.kl
        kept = list(range(len(groups) * per))
        if self.best_of > 1 and proxy is not None:
            kept = best_indices(proxy, self.best_of)
        texts = [*chain(*rollout.said)]
        lengths = [len(c) for g in rollout.groups for c in g.completions]
        finished = list(rollout.finished)
        chosen = [groups[i // per] for i in kept]
        prompts = [prompt_text(g) for g in chosen]
        completions = [texts[i] for i in kept]
        scored = (prompts, completions, [known_of(g) for g in chosen])
        gold = graded(build(self.gold), *scored)
        audit = graded(build(self.audit), *scored) if self.audit else None
        rows: list[dict[str, object]] = [
            {
                "prompt_id": chosen[k].id,
                "prompt": prompts[k],
                "sample": k % self.samples,
                "completion": split(completions[k]).answer,
                **measured.thoughts[i].columns(),
                "tokens": lengths[i],
                "finished": bool(finished[i]),
                "gold": float(gold[k]),
                "audit": None if audit is None else float(audit[k]),
                "proxy": None if proxy is None else float(proxy[i]),
                "kl": None if kl is None else kl[i],
            }
            for k, i in enumerate(kept)
        ]
        return [rows[i : i + self.samples] for i in range(0, len(rows), self.samples)]

    def forgetting(
        self, dealt: Dealt, groups: Sequence[PromptGroup], tokenization: Tokenization
    ) -> float | None:
        """Policy's mean NLL (nats per token) on the human continuations of the same prompts."""
        from alignlab.engine.dealt import target_logps
        from alignlab.stages.sft import demonstrations

        human = [
            replace(g, completions=(str(g.meta["reference"]),))
            for g in groups
            if g.meta.get("reference")
        ] or [g for g in groups if g.completions]
        tokens: list[TokenGroup] = tokenization.groups(demonstrations(human))
        found = [*chain(*dealt.shared("policy", tokens, target_logps))]
        count = sum(map(len, found))
        return -sum(float(x.sum(dtype=float)) for x in found) / count if count else None

    def reference_gold(self, groups: Sequence[PromptGroup]) -> float | None:
        """Mean gold reward of the data's own answers: an anchor for the gold of the policies."""
        from alignlab.rewards.annotator import prompt_text
        from alignlab.rewards.judge.annotator import reference_of
        from alignlab.rewards.reward import known_of

        known = [(group, text) for group in groups if (text := reference_of(group))]
        if not known:
            return None
        prompts = [prompt_text(group) for group, _ in known]
        scores = build(self.gold).score(
            prompts, [text for _, text in known], [known_of(group) for group, _ in known]
        )
        return float(sum(float(score) for score in scores) / len(known))

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampled tokens at the length limit."""
        from alignlab.stages.estimate import apart_behind, decode_of, sampling_estimate

        others, apart = apart_behind(inputs, cache)
        each = self.samples * self.best_of
        rows, rewards = self.prompts * each, len(filling("reward", self.inputs))
        group = self.max_prompt + each * self.max_completion
        scorers = rewards + 2 * (self.best_of == 1)
        return sampling_estimate(
            self.backbone,
            cache,
            tokens=rows * self.sampling.max_new_tokens,
            frozen=2 + rewards - others,
            apart=apart,
            decode=decode_of(self.sampling, rows, self.max_prompt),
            scored=scorers * self.prompts * group,
            group=group,
            row=self.max_prompt + self.max_completion,
        )


@dataclass(frozen=True)
class Measured:
    """What models say of C samples: the proxy reward (C,), and log-ratios (C,) in nats."""

    proxy: np.ndarray | None
    kl: Sequence[float] | None
    thoughts: Sequence[Thought]


def thinking_summary(rows: Sequence[Mapping[str, object]]) -> dict[str, float | None]:
    """Mean tokens of thoughts and the share of them that were cut off; nothing without any."""
    thoughts = [row for row in rows if "thinking" in row]
    return means(thoughts, ("thinking_tokens", "thinking_cut")) if thoughts else {}


def best_indices(scores: np.ndarray, n: int) -> list[int]:
    """Index of the highest score in every run of ``n`` (the first one at a tie)."""
    return [int(i * n + row.argmax()) for i, row in enumerate(scores.reshape(-1, n))]


def means(rows: Sequence[Mapping[str, object]], names: Sequence[str]) -> dict[str, float | None]:
    """Mean of each named column over the rows that have it."""
    out: dict[str, float | None] = {}
    for name in names:
        values = [float(row[name]) for row in rows if row[name] is not None]  # type: ignore[arg-type]
        out[name] = sum(values) / len(values) if values else None
    return out
