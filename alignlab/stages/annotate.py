"""Annotation: sample completions from a policy and let a simulated annotator rank them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from alignlab.data.gate.limits import Limits
from alignlab.errors import DataError
from alignlab.models.load import BackboneConfig
from alignlab.rollout.sampling import Sampling
from alignlab.spec import Spec, build
from alignlab.stages.stage import POLICY_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import PromptGroup, TokenGroup, Verdict
    from alignlab.data.template import Tokenization
    from alignlab.engine.distributed import Engine
    from alignlab.models.backbone import Backbone
    from alignlab.run import Run

FILE = "annotations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Annotate(Stage):
    """Give every prompt group of the ``preference`` split a verdict over its completions.

    Groups that come with a ranking, scores or thumbs keep them (human data). The others are
    completed with ``completions`` samples of the policy, which the annotator ranks: the
    simulated preference collection of AlpacaFarm (Dubois et al. 2023, arXiv:2305.14387). Token ids
    are stored, so that every later stage trains on the very tokens that were sampled.
    """

    version: ClassVar[int] = 4  # decoding rounds otherwise
    kind: ClassVar[str] = "annotate"
    roles: ClassVar[Mapping[str, Role]] = {"policy": Role(POLICY_KINDS)}

    backbone: BackboneConfig
    data: Spec
    gate: Limits
    annotator: Spec
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]
    prompts: Annotated[int, Range(min=1)]
    completions: Annotated[int, Range(min=2, max=9)]
    sampling: Sampling
    validation_share: Annotated[float, Range(min=0, max=0.5)]

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write ``annotations.jsonl``: one prompt group with its verdict per line."""
        from alignlab.data.template import Tokenization
        from alignlab.models.templates import template_hash
        from alignlab.stages.session import inspect, keep_card, open_backbone

        run = engine.workers().own(run)
        data = build(self.data)
        groups = data.load("preference")[: self.prompts]
        backbone = open_backbone(self.backbone, run, engine, self.seed)
        # Before the tokenizer is used: the policy may bring its own (after `pretrain`).
        backbone.add("policy", source=inputs["policy"].model_dir, trainable=False)
        tokenization = Tokenization(backbone.tokenizer, self.max_prompt, self.max_completion)
        given = [i for i, g in enumerate(groups) if g.completions and judged(g.verdict)]
        missing = sorted(set(range(len(groups))) - set(given))
        annotated = {i: groups[i] for i in given}
        tokens = dict(zip(given, tokenization.groups([groups[i] for i in given]), strict=True))
        if missing:
            fresh = self.collect(backbone, tokenization, [groups[i] for i in missing], run)
            for i, (group, token) in zip(missing, fresh, strict=True):
                annotated[i], tokens[i] = group, token
        ordered = [annotated[i] for i in range(len(groups))]
        rows = [replace(tokens[i], row=i) for i in range(len(groups))]
        held_out = {split: data.load(split) for split in ("validation", "test")}
        pairs = sum(len(g.verdict.pairs()) for g in ordered)
        inspect(
            ordered,
            rows,
            tokenization,
            run,
            need="pairs" if pairs else "thumbs",
            held_out=held_out,
            limits=self.gate,
            sampled=bool(missing),
        )
        keep_card(data, run)
        if engine.workers().is_main:
            write(run.path / FILE, ordered, rows, self.validation_share)
        run.update_record(
            label=self.label or "annotations",
            template=template_hash(backbone.tokenizer),
            prompts=len(groups),
            completions=sum(len(g.completions) for g in ordered),
            summary={
                "pairs": pairs,
                "groups_without_pairs": sum(not g.verdict.pairs() for g in ordered),
            },
        )

    def collect(
        self,
        backbone: Backbone,
        tokenization: Tokenization,
        groups: Sequence[PromptGroup],
        run: Run,
    ) -> list[tuple[PromptGroup, TokenGroup]]:
        """Sample completions for ``groups`` and have them ranked."""
        from alignlab.rewards.agreement import agreement_of
        from alignlab.rollout.rollout import sample_rollout

        prompts = tokenization.prompts(groups)
        with backbone.view("policy") as view:
            rollout = sample_rollout(
                view, prompts, tokenization, self.sampling, self.completions, self.seed, step=0
            )
        annotator = build(self.annotator)
        out = []
        for group, token, texts in zip(groups, rollout.groups, rollout.completions, strict=True):
            annotation = annotator.annotate(group, texts, self.seed)
            verdict = annotation.verdict
            meta = {**group.meta, "gold": annotation.scores, "flipped": annotation.flipped}
            if annotation.votes:  # of a panel
                meta |= {"votes": annotation.votes, "agreement": annotation.agreement}
            out.append(
                (
                    replace(group, completions=tuple(texts), verdict=verdict, meta=meta),
                    replace(token, verdict=verdict, meta=meta),
                )
            )
        total, _ = backbone.parameter_counts("policy")
        run.update_record(
            params_total=total,
            tokens_sampled=rollout.tokens,
            flops=2.0 * total * rollout.tokens,
            agreement=agreement_of([group.meta.get("votes", ()) for group, _ in out]),
        )
        return out

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Sampled tokens, at the length limit."""
        from alignlab.stages.estimate import sampling_estimate

        tokens = self.prompts * self.completions * self.sampling.max_new_tokens
        return sampling_estimate(self.backbone, cache, tokens=tokens)


def judged(verdict: Verdict) -> bool:
    """Whether a verdict tells completions apart, or gives a single one its thumb."""
    return bool(verdict.pairs()) or verdict.kind == "thumbs"


def write(
    path: Path, groups: Sequence[PromptGroup], tokens: Sequence[TokenGroup], validation_share: float
) -> None:
    """Write groups and token ids, a line each; the split is a stable hash of the group's id."""
    import hashlib

    with path.open("w", encoding="utf-8") as file:
        for group, token in zip(groups, tokens, strict=True):
            digest = hashlib.sha256(f"validation:{group.id}".encode()).digest()
            held_out = int.from_bytes(digest[:8], "big") / 2**64 < validation_share
            row = {
                "row": token.row,
                "id": group.id,
                "split": "validation" if held_out else "train",
                "prompt": group.prompt,
                "completions": list(group.completions),
                "verdict": asdict(group.verdict),
                "prompt_ids": token.prompt.tolist(),
                "completion_ids": [c.tolist() for c in token.completions],
                "truncated": list(token.truncated),
                "masks": [None if mask is None else mask.tolist() for mask in token.masks],
                "meta": dict(group.meta),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read(run: Run, split: str) -> list[TokenGroup]:
    """Token groups of one split of a finished annotate run, in the order of writing."""
    import numpy as np

    from alignlab.data.group import TokenGroup

    groups = []
    with (run.path / FILE).open(encoding="utf-8") as file:
        for line in file:
            row: dict[str, Any] = json.loads(line)
            if row["split"] != split:
                continue
            groups.append(
                TokenGroup(
                    prompt=np.asarray(row["prompt_ids"], dtype=np.int32),
                    completions=tuple(np.asarray(c, dtype=np.int32) for c in row["completion_ids"]),
                    verdict=verdict_of(row["verdict"]),
                    row=row["row"],
                    id=row["id"],
                    truncated=tuple(row["truncated"]),
                    meta=row["meta"],
                    masks=tuple(None if m is None else np.asarray(m, bool) for m in row["masks"]),
                )
            )
    return groups


def require_verdicts(groups: Sequence[TokenGroup], annotations: Run, least: int = 1) -> None:
    """Refuse to train on fewer than ``least`` prompts with a verdict of use to the stage.

    Raises:
        DataError: says how many there are and what to change.
    """
    if len(groups) < least:
        raise DataError(
            f"{annotations.name}: {len(groups)} of the annotated prompts for training have a"
            f" verdict that this stage can use, and it needs {least} (a pairwise method needs a"
            " better and a worse completion of one prompt; equal scores are ties). Annotate more"
            " prompts, or use a method that fits the verdicts, such as objective=kto for thumbs."
        )


def require_own_template(annotations: Run, backbone: Backbone) -> None:
    """Refuse annotations whose prompts were written with another chat template than the backbone's.

    Raises:
        ConfigError: names both templates.
    """
    from alignlab.models.templates import require_same_template, template_hash

    record = annotations.record
    if "template" in record:
        mine = template_hash(backbone.tokenizer)
        require_same_template(mine, record["template"], annotations.name)


def verdict_of(values: Mapping[str, Any]) -> Verdict:
    """Verdict from its JSON form, where tuples are lists."""
    from alignlab.data.group import Verdict

    lists = {name: tuple(value) for name, value in values.items() if name != "kind"}
    return Verdict(values["kind"], **lists)


def annotated_rows(inputs: Mapping[str, Stage]) -> float:
    """Prompts that a stage behind an annotate stage trains on, before ties are left out."""
    stage = inputs["annotations"]
    assert isinstance(stage, Annotate)
    return stage.prompts * (1 - stage.validation_share)


def group_limit(inputs: Mapping[str, Stage], completions: int | None = None) -> int:
    """Most tokens of one annotated prompt with all, or only some, of its completions."""
    stage = inputs["annotations"]
    assert isinstance(stage, Annotate)
    return stage.max_prompt + (completions or stage.completions) * stage.max_completion
