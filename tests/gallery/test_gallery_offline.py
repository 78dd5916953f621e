"""Silent bugs of offline training (references, losses, normalisers), each with the bug planted.

What a stage reports of its first step is compared with plain arithmetic over log-probabilities
that transformers computes, one sequence at a time. Every test passes on the code as it is and fails
once the line that prevents the bug is replaced (`mutation.catches`); the issue in its mark is where
the bug was met in public.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from mutation import catches
from stage_lab import Caught, Chain, PlainHead, objective, plain_model, token_logps
from torch import Tensor

from alignlab.data.group import TokenGroup
from alignlab.data.order import step_rows
from alignlab.data.pack import flatten
from alignlab.models.backbone import Backbone
from alignlab.models.load import resolve
from alignlab.models.logps import Head
from alignlab.models.logps import token_logps as head_logps
from alignlab.objectives.pairwise import orpo
from alignlab.objectives.unpaired import kl_point, kto
from alignlab.run import Run
from alignlab.stages.annotate import read
from alignlab.tensors import PairLogps, SingleLogps

SMALL, LARGE = 48, 4096  # token budgets: many micro-batches per step, and one


@dataclass
class Plain:
    """Log-probabilities by transformers alone; models and results are kept."""

    chain: Chain
    models: dict[str, Any] = field(default_factory=dict)
    known: dict[Any, Tensor] = field(default_factory=dict)

    def logps(self, run: Run | None, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """Of every completion token under a run's model, or under the base model."""
        cache = self.chain.lab.store.cache
        folder = run.model_dir if run else resolve("random:tiny", cache)
        key = (str(folder), tuple(map(int, prompt)), tuple(map(int, completion)))
        if key not in self.known:
            if key[0] not in self.models:
                self.models[key[0]] = plain_model(folder, cache)
            with torch.no_grad():
                self.known[key] = token_logps(self.models[key[0]], prompt, completion)
        return self.known[key]

    def sums(self, run: Run, groups: Sequence[TokenGroup]) -> list[float]:
        """One number per completion, in order."""
        return [float(self.logps(run, g.prompt, c).sum()) for g in groups for c in g.completions]


@pytest.fixture(scope="module")
def plain(chain: Chain) -> Plain:
    return Plain(chain)


@pytest.fixture(autouse=True)
def no_stored_references(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing that a planted bug has put into the reference cache outlives its test."""
    yield
    for name in ("chain", "lora_chain"):
        if name in request.fixturenames:
            forget_references(request.getfixturevalue(name))


def forget_references(chain: Chain) -> None:
    shutil.rmtree(chain.lab.store.cache / "reference", ignore_errors=True)


def prefer(
    chain: Chain, reference: Run, name: str | dict[str, Any], budget: int = LARGE, **changes: Any
) -> Run:
    """A preference run of one step with an empty reference cache."""
    forget_references(chain)
    chosen = objective(name) if isinstance(name, str) else name
    stage, inputs = chain.prefer(objective=chosen, **{"steps": 1, **changes})
    return chain.lab.run(stage, {**inputs, "reference": reference}, token_budget=budget)


def first(run: Run) -> dict[str, float]:
    """Metrics of the first step."""
    return run.metrics("train")[0]


def picked(annotations: Run, batch: int = 8, step: int = 1) -> list[TokenGroup]:
    """The annotated groups of a step."""
    groups = read(annotations, "train")
    return [groups[row] for row in step_rows(step - 1, batch, len(groups), 0)]


def extremes(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """The best and the worst completion of each group, by its scores."""
    kept = []
    for group in groups:
        scores = group.verdict.scores
        kept.append(group.keep((scores.index(max(scores)), scores.index(min(scores)))))
    return kept


@dataclass
class Pair:
    """Summed log-ratios and lengths of the two sides."""

    chosen: float
    rejected: float
    chosen_length: int
    rejected_length: int

    @property
    def gap(self) -> float:
        return self.chosen - self.rejected

    @property
    def gap_per_token(self) -> float:
        return self.chosen / self.chosen_length - self.rejected / self.rejected_length


def pairs_of(plain: Plain, policy: Run, reference: Run, groups: Sequence[TokenGroup]) -> list[Pair]:
    pairs = []
    for group in extremes(groups):
        new, old = plain.sums(policy, [group]), plain.sums(reference, [group])
        one, two = group.completions
        pairs.append(Pair(new[0] - old[0], new[1] - old[1], len(one), len(two)))
    return pairs


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def expected(plain: Plain, earlier: Run, loss: Callable[[Pair], float], batch: int = 8) -> float:
    """Mean loss of the first step, whose policy is the chain's SFT model."""
    chain = plain.chain
    pairs = pairs_of(plain, chain.sft, earlier, picked(chain.annotations, batch))
    assert max(abs(pair.gap) for pair in pairs) > 0.1  # policy and reference are not the same
    return mean([loss(pair) for pair in pairs])


# -- the reference ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "base model as reference",
    "the reference is the run it was said to be, not the base model of the checkpoint",
    issue="huggingface/trl#1340",
)
@catches(
    "alignlab.stages.reference",
    'self.backbone.add("reference", source=self.source.model_dir, trainable=False)',
    'self.backbone.add("reference", source=None, trainable=False)',
)
def test_base_model_as_reference(chain: Chain, earlier: Run, plain: Plain) -> None:
    """huggingface/trl#1340; TRL 1.16 reloads the base when a policy is handed over in memory."""
    found = first(prefer(chain, earlier, "dpo"))["loss"]
    by_hand = expected(plain, earlier, lambda pair: softplus(-0.1 * pair.gap))
    assert found == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the policy as its own reference",
    "the reference stays where it was while the policy moves; the loss leaves log 2",
    issue="hiyouga/LlamaFactory#6314",
)
@catches(
    "alignlab.stages.terms",
    'reference = packed.extra.get("reference")',
    'reference = sums.detach() if "reference" in packed.extra else None',
)
def test_the_policy_as_its_own_reference(chain: Chain, plain: Plain) -> None:
    """hiyouga/LlamaFactory#6314, huggingface/trl#1500, YiyangZhou/POVID#11."""
    forget_references(chain)
    run = prefer(chain, chain.sft, "dpo", steps=2)
    one, two = run.metrics("train")
    assert one["loss"] == pytest.approx(math.log(2), abs=1e-6)
    # The second step's policy is the one that a run of one step has saved.
    moved = prefer(chain, chain.sft, "dpo", optimizer__schedule="constant")
    groups = picked(chain.annotations, step=2)
    pairs = pairs_of(Plain(chain), moved, chain.sft, groups)
    assert two["loss"] == pytest.approx(mean([softplus(-0.1 * p.gap) for p in pairs]), abs=1e-5)
    assert abs(two["loss"] - math.log(2)) > 1e-3


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "adapter off taken for SFT",
    "with adapters, the reference is the SFT adapter, not the base with all adapters off",
    issue="hiyouga/LlamaFactory#8459",
)
@catches(
    "alignlab.stages.reference",
    'self.backbone.add("reference", source=self.source.model_dir, trainable=False)',
    'self.backbone.add("reference", source=None, trainable=False)',
)
@catches(
    "alignlab.models.adapters",
    "if source:\n            self._read_weights(name, source)",
    'if source and name != "reference":\n            self._read_weights(name, source)',
)
def test_adapter_off_taken_for_sft(lora_chain: Chain, caught: Caught) -> None:
    """hiyouga/LlamaFactory#8459; modelscope/ms-swift#9934 (the adapter was never read)."""
    run = prefer(lora_chain, lora_chain.sft, "dpo")
    assert first(run)["loss"] == pytest.approx(math.log(2), abs=1e-5)
    groups = caught.work.groups[:4]
    found = caught.work.extra_of(groups)["reference"].tolist()
    by_hand, plain = [], Plain(lora_chain)
    for group in groups:
        by_hand += plain.sums(lora_chain.sft, [group])
    assert found == pytest.approx(by_hand, abs=1e-4)
    base = [float(plain.logps(None, g.prompt, c).sum()) for g in groups for c in g.completions]
    assert max(abs(a - b) for a, b in zip(by_hand, base, strict=True)) > 0.05


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "stale reference cache",
    "other data, another template and other weights each miss the reference cache",
    issue="allenai/open-instruct#1182",
)
@catches(
    "alignlab.stages.reference",
    "digest.update(content(group).encode())",
    "digest.update(group.id.encode())",  # rows are known by name: changed tokens hit
)
@catches(
    "alignlab.stages.reference",
    "hashlib.sha256(np.ascontiguousarray(group.prompt, dtype=np.int32).tobytes())",
    "hashlib.sha256()",  # by completions alone: a changed template hits
)
@catches(
    "alignlab.stages.reference",
    'f"{self.source.key}:{self.backbone.dtype_name}"',
    'f"{self.backbone.dtype_name}"',  # by data alone: another model hits
)
def test_stale_reference_cache(chain: Chain, earlier: Run, plain: Plain) -> None:
    """allenai/open-instruct#1182; aidotse/LeakPro#415."""
    forget_references(chain)
    shorter = chain.lab.run(
        chain.lab.stage("annotate", validation_share=0.2, max_completion=4), {"policy": chain.sft}
    )
    prompted = chain.lab.run(
        chain.lab.stage("annotate", validation_share=0.2, max_prompt=5), {"policy": chain.sft}
    )
    for reference, data in (
        (earlier, chain.annotations),
        (chain.sft, chain.annotations),
        (earlier, shorter),
        (earlier, prompted),
    ):
        stage, inputs = chain.prefer(steps=1, batch=4)
        given = {**inputs, "reference": reference, "annotations": data}
        found = first(chain.lab.run(stage, given))
        pairs = pairs_of(plain, chain.sft, reference, picked(data, 4))
        assert found["chosen_log_ratio"] == pytest.approx(mean([p.chosen for p in pairs]), abs=1e-4)
        assert found["margin"] == pytest.approx(mean([p.gap for p in pairs]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "reference of another row",
    "each completion keeps its own reference log-probability, however micro-batches were packed",
    issue="NVIDIA/NeMo-Aligner#227",
)
@catches(
    "alignlab.engine.dealt",
    "out[place] = [next(pieces)",
    "out[len(out)] = [next(pieces)",
)
def test_reference_of_another_row(chain: Chain, earlier: Run, plain: Plain, caught: Caught) -> None:
    """NVIDIA/NeMo-Aligner#227; huggingface/trl#2423."""
    prefer(chain, earlier, "dpo", SMALL)
    groups = caught.work.groups
    found = caught.work.extra_of(groups)["reference"].tolist()
    assert found == pytest.approx(plain.sums(earlier, groups), abs=1e-4)


@pytest.mark.conformance(
    "silent bug",
    "rounded reference",
    "the stored reference has the policy's precision: at the start every log-ratio is zero",
    issue="eric-mitchell/direct-preference-optimization#34",
)
@catches(
    "alignlab.engine.dealt",
    "view.logps(batch, temperature=temperature).float()",
    "view.logps(batch, temperature=temperature).bfloat16().float()",
)
def test_rounded_reference(chain: Chain, caught: Caught) -> None:
    """eric-mitchell/direct-preference-optimization#34 (reference in fp16, policy in fp32)."""
    run = prefer(chain, chain.sft, "dpo")
    assert first(run)["loss"] == pytest.approx(math.log(2), abs=1e-6)
    groups = caught.work.groups
    policy = Plain(chain).sums(chain.sft, groups)
    found = caught.work.extra_of(groups)["reference"].tolist()
    assert found == pytest.approx(policy, abs=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "reference with dropout on",
    "dropout is off in every reference pass and in KTO's KL estimate, also between two updates",
    issue="hiyouga/LlamaFactory#10779",
)
@catches(
    "alignlab.models.backbone",
    "model.train(self._training and self._trainable[name])",
    'model.train(name == "reference" or self._training)',
)
@catches(
    "alignlab.engine.loop",
    "backbone.train_mode(False)\n    micros",
    "backbone.train_mode(True)\n    micros",
)
def test_reference_with_dropout_on(lora_chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """hiyouga/LlamaFactory#10779; review of huggingface/trl#5542; #2042."""
    from alignlab.objectives import unpaired

    ratios: list[Tensor] = []
    point = unpaired.kl_point

    def keeping(values: Tensor) -> Tensor:
        ratios.append(values)
        return point(values)

    with monkeypatch.context() as patch:
        patch.setattr(unpaired, "kl_point", keeping)
        changes = {"backbone__adapter__dropout": 0.5, "optimizer__learning_rate": 1e-12}
        prefer(lora_chain, lora_chain.sft, "kto", steps=2, **changes)
    assert len(ratios) == 3  # two steps and the evaluation; nothing has moved: all are zero
    assert max(float(values.abs().max()) for values in ratios) < 1e-5


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "evaluated against itself",
    "held-out margins after training compare the trained policy with the reference",
    issue="huggingface/trl#6443",
)
@catches(
    "alignlab.stages.terms",
    "reference = self.reference.sums(groups)",
    "reference = sums",
)
def test_evaluated_against_itself(chain: Chain, earlier: Run) -> None:
    """huggingface/trl#6443 (precomputation after training used the trained model)."""
    run = prefer(chain, earlier, "dpo", steps=2)
    held_out = read(chain.annotations, "validation")
    pairs = pairs_of(Plain(chain), run, earlier, held_out)
    assert run.summary()["margin"] == pytest.approx(mean([p.gap for p in pairs]), abs=1e-4)


# -- the objective ---------------------------------------------------------------------------------


@pytest.mark.conformance(
    "silent bug",
    "objective ignored",
    "the loss that was configured is the loss that trains",
    issue="modelscope/ms-swift#10167",
)
@catches(
    "alignlab.stages.preference",
    "terms = Terms(function(self.objective), need, reference)",
    "from functools import partial; from alignlab.objectives.pairwise import dpo; "
    "terms = Terms(partial(dpo, beta=0.1, label_smoothing=0.0), need, reference)",
)
def test_objective_ignored(chain: Chain, earlier: Run, plain: Plain) -> None:
    """modelscope/ms-swift#10167: hinge and IPO trained as sigmoid."""
    found = first(prefer(chain, earlier, "hinge"))["loss"]
    by_hand = expected(plain, earlier, lambda pair: max(0.0, 1 - 0.1 * pair.gap))
    assert found == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "label smoothing dropped",
    "conservative DPO puts its share of the loss on the reversed pair",
    issue="huggingface/trl#7063",
)
@catches(
    "alignlab.objectives.pairwise",
    "return -keep * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)",
    "return -F.logsigmoid(logits)",
)
def test_label_smoothing_dropped(chain: Chain, earlier: Run, plain: Plain) -> None:
    """huggingface/trl#7063; TRL 1.16's `sigmoid` ignores it."""
    found = first(prefer(chain, earlier, "cdpo"))["loss"]

    def loss(pair: Pair) -> float:
        return 0.8 * softplus(-0.1 * pair.gap) + 0.2 * softplus(0.1 * pair.gap)

    assert found == pytest.approx(expected(plain, earlier, loss), abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "IPO: sum or mean",
    "each convention is what its name says: log-ratios summed, or averaged over tokens",
    issue="meta-pytorch/torchtune#1291",
)
@catches(
    "alignlab.objectives.pairwise",
    "chosen, rejected = chosen / policy.chosen_length, rejected / policy.rejected_length",
    "pass",
)
@catches("alignlab.objectives.pairwise", 'if normalize == "mean":', "if True:")
def test_ipo_sum_or_mean(chain: Chain, earlier: Run, plain: Plain) -> None:
    """meta-pytorch/torchtune#1291; huggingface/trl#1265, #1677; modelscope/ms-swift#9925."""
    for name, gap in (("ipo", "gap_per_token"), ("ipo_sum", "gap")):
        found = first(prefer(chain, earlier, name))["loss"]
        # (h − 1/(2τ))² with τ = 0.1
        by_hand = expected(plain, earlier, lambda pair, gap=gap: (getattr(pair, gap) - 5) ** 2)
        assert found == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "wrong token count",
    "a mean over tokens divides by this completion's own tokens, EOS counted as in the sum",
    issue="PaddlePaddle/PaddleFormers#4909",
)
@catches(
    "alignlab.data.pack",
    "lengths=tensor(targets),",
    "lengths=tensor(targets - 1),",  # EOS in the sum, not in the count
)
@catches(
    "alignlab.data.pack",
    "lengths=tensor(targets),",
    "lengths=tensor(np.full_like(targets, targets.max())),",  # padded
)
@catches(
    "alignlab.objectives.pairwise",
    "gap = chosen / policy.chosen_length - rejected / policy.rejected_length",
    "gap = chosen / policy.rejected_length - rejected / policy.chosen_length",
)
def test_wrong_token_count(chain: Chain, earlier: Run, plain: Plain) -> None:
    """PaddlePaddle/PaddleFormers#4909; jingyaogong/minimind#298 (the padded length)."""
    found = first(prefer(chain, earlier, "dpo_norm"))["loss"]
    by_hand = expected(plain, earlier, lambda pair: softplus(-5 * pair.gap_per_token))
    assert found == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.conformance(
    "silent bug",
    "ORPO at p = 1",
    "a completion that is certain has finite log-odds and a finite gradient",
    issue="huggingface/trl#1473",
)
@catches("alignlab.objectives.stable", "x = x.clamp(max=-torch.finfo(x.dtype).eps)", "x = x * 1")
def test_orpo_at_certainty() -> None:
    """huggingface/trl#1473 (log1p(−exp(0)) is −inf), hpcaitech/ColossalAI#6407."""
    lengths = torch.tensor([3, 5])
    sums = torch.tensor([[0.0, -1e-9], [-2.0, 0.0]], requires_grad=True)
    losses = orpo(PairLogps(sums[0], sums[1], lengths, lengths), weight=0.1)
    assert bool(losses.isfinite().all())
    losses.sum().backward()
    assert bool(sums.grad.isfinite().all())


# -- KTO -------------------------------------------------------------------------------------------


def mismatched_ratios(
    plain: Plain, policy: Run, reference: Run, groups: Sequence[TokenGroup]
) -> list[float]:
    """Log-ratios of every prompt with the completions of the next prompt of the step."""
    ratios = []
    for asked, answered in zip(groups, [*groups[1:], groups[0]], strict=True):
        pair = replace(asked, completions=answered.completions)
        new, old = plain.sums(policy, [pair]), plain.sums(reference, [pair])
        ratios += [a - b for a, b in zip(new, old, strict=True)]
    return ratios


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "KTO's KL pairing",
    "no prompt meets its own completion in the KL estimate, in steps of odd size either",
    issue="huggingface/trl#1911",
)
@catches(
    "alignlab.stages.pairing",
    "completions=p.completions,",
    "completions=group.completions,",
)
@catches(
    "alignlab.stages.pairing",
    "next(other for other in others(i) if other.row != group.row)",
    "step[len(step) - 1 - i]",  # reversed: the middle one of an odd number meets itself
)
@catches(
    "alignlab.stages.terms",
    "kl_point(policy - self._reference().sums(groups))",  # before the step, of all micro-batches
    "kl_point(policy * 0)",
)
@catches(
    "alignlab.stages.terms",
    "kl_point(other - reference)",  # in the pass that trains, of a step that is one
    "kl_point(other * 0)",
)
def test_kto_kl_pairing(chain: Chain, earlier: Run, plain: Plain) -> None:
    """huggingface/trl#1911, #1402; the same line in hiyouga/LlamaFactory until #7509."""
    groups = extremes(picked(chain.annotations, 5))
    point = mean(mismatched_ratios(plain, chain.sft, earlier, groups))
    assert point > 0.05  # the clamp at zero would hide the rest
    for budget in (SMALL, LARGE):
        found = first(prefer(chain, earlier, "kto", budget, batch=5))
        assert found["kl_point"] == pytest.approx(point, abs=1e-4)
    losses = []
    for group in groups:  # 1 − σ(β(lr − z₀)) for the better one, 1 − σ(β(z₀ − lr)) for the worse
        good, bad = plain.sums(chain.sft, [group])
        good_before, bad_before = plain.sums(earlier, [group])
        losses.append(1 / (1 + math.exp(0.1 * (good - good_before - point))))
        losses.append(1 / (1 + math.exp(-0.1 * (bad - bad_before - point))))
    assert found["loss"] == pytest.approx(mean(losses), abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "KTO's KL per micro-batch",
    "one KL point per optimizer step, whatever its micro-batches",
    issue="huggingface/trl#2153",
)
@catches(
    "alignlab.stages.session",
    "extra={**statistics, **(",
    "extra={**(dict(self.statistics(part)) if self.statistics else {}), **(",
    raises=(AssertionError, KeyError),  # the reference knows the pairs of whole steps only
)
def test_kto_kl_per_micro_batch(chain: Chain, earlier: Run, plain: Plain) -> None:
    """huggingface/trl#2153, review in #1380; PKU-Alignment/align-anything#216."""
    point = mean(mismatched_ratios(plain, chain.sft, earlier, extremes(picked(chain.annotations))))
    for budget in (SMALL, LARGE):
        found = first(prefer(chain, earlier, "kto", budget))
        assert found["kl_point"] == pytest.approx(point, abs=1e-4)


@pytest.mark.conformance(
    "silent bug",
    "KTO's KL with a gradient",
    "the KL point is a constant of the loss: no gradient through the mismatched completions",
    issue="ContextualAI/HALOs#4",
)
@catches(
    "alignlab.objectives.unpaired",
    "log_ratios_mismatched.detach().mean()",
    "log_ratios_mismatched.mean()",
)
def test_kto_kl_with_a_gradient() -> None:
    """ContextualAI/HALOs#4: the first implementation propagated through it."""
    moving = torch.tensor([0.4, 1.1, 0.3], requires_grad=True)
    thumbs, lengths = torch.tensor([True, False, True]), torch.tensor([2, 3, 4])
    policy = SingleLogps(torch.tensor([-4.0, -6.0, -5.0], requires_grad=True), lengths, thumbs)
    before = SingleLogps(torch.tensor([-5.0, -6.5, -4.0]), lengths, thumbs)
    point = kl_point(moving)
    assert float(point.detach()) == pytest.approx(0.6)  # (0.4 + 1.1 + 0.3) / 3
    losses = kto(policy, before, point, beta=0.1, desirable_weight=1.0, undesirable_weight=1.0)
    losses.sum().backward()
    assert policy.completion.grad is not None
    assert moving.grad is None


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "KTO in blocks of one label",
    "data sorted by label are shuffled: every step sees desirable and undesirable completions",
    issue="huggingface/trl#1380",
)
@catches(
    "alignlab.data.order",
    "np.random.default_rng([seed, epoch]).permutation(rows)",
    "np.arange(rows)",
)
def test_kto_in_blocks_of_one_label(chain: Chain, caught: Caught) -> None:
    """huggingface/trl#1380; its sequential sampler (#5864) on unpaired pairs does it still."""
    run = chain.lab.new_run("annotate")
    run.path.mkdir(parents=True)
    lines = (chain.annotations.path / "annotations.jsonl").read_text().splitlines()
    with (run.path / "annotations.jsonl").open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):  # all thumbs up, then all thumbs down
            row = {**json.loads(line), "split": "train"}
            for name in ("completions", "completion_ids", "truncated"):
                row[name] = row[name][:1]
            thumbs = [number < len(lines) / 2]
            row["verdict"] = {"kind": "thumbs", "ranks": [], "scores": [], "thumbs": thumbs}
            file.write(json.dumps(row) + "\n")
    stage, inputs = chain.prefer(objective=objective("kto"))
    chain.lab.run(stage, {**inputs, "annotations": run})
    for step in (1, 2, 3):
        groups = [group for micro in caught.work.micros(step) for group in micro.data.groups]
        assert {group.verdict.thumbs for group in groups} == {(True,), (False,)}


# -- means and their counts ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "accumulation scaling",
    "loss and gradient are those of the whole step, however many micro-batches it takes",
    issue="huggingface/trl#2617",
)
@catches("alignlab.stages.session", "count=self.count(chosen),", "count=self.count(part),")
def test_accumulation_scaling(chain: Chain, earlier: Run, plain: Plain) -> None:
    """huggingface/trl#2617, #5710; unslothai/unsloth#1178; ContextualAI/HALOs#37."""
    by_hand = expected(plain, earlier, lambda pair: softplus(-0.1 * pair.gap))
    many, one = (first(prefer(chain, earlier, "dpo", budget)) for budget in (SMALL, LARGE))
    for found in (many, one):
        assert found["loss"] == pytest.approx(by_hand, abs=1e-5)
    assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def sft_losses(chain: Chain, plain: Plain, caught: Caught, **changes: Any) -> tuple[float, Tensor]:
    """Loss of a first SFT step in small micro-batches, and all of its token losses."""
    stage = chain.lab.stage("sft", steps=1, batch=6)
    for name, value in changes.items():
        stage = replace(stage, backbone=replace(stage.backbone, **{name: value}))
    run = chain.lab.run(stage, {}, token_budget=SMALL)
    groups = [group for micro in caught.work.micros(1) for group in micro.data.groups]
    assert len(caught.work.micros(1)) > 1
    logps = [plain.logps(None, g.prompt, g.completions[0]) for g in groups]
    assert abs(torch.stack([x.mean() for x in logps]).mean() - torch.cat(logps).mean()) > 1e-3
    return first(run)["loss"], -torch.cat(logps)


@pytest.mark.conformance(
    "silent bug",
    "mean of micro-batch means",
    "every token of a step weighs the same, also in a micro-batch with fewer of them",
    issue="PrimeIntellect-ai/prime-rl#583",
)
@catches(
    "alignlab.stages.session",
    "count=self.count(chosen),",
    "count=self.count(part) * len(split(mine, self.engine.token_budget)),",
)
def test_mean_of_micro_batch_means(chain: Chain, plain: Plain, caught: Caught) -> None:
    """PrimeIntellect-ai/prime-rl#583; ml-explore/mlx-lm#1413; verl-project/verl#3332."""
    found, losses = sft_losses(chain, plain, caught)
    assert found == pytest.approx(float(losses.mean()), abs=1e-5)


@pytest.mark.conformance(
    "silent bug",
    "padding in the mean",
    "a mean over tokens counts tokens, in the padded layout too",
    issue="NovaSky-AI/SkyRL#462",
)
@catches(
    "alignlab.stages.sft",
    "return float(sum(sum(g.targets()) for g in groups))",
    "return float(len(groups) * max(len(c) for g in groups for c in g.completions))",
)
def test_padding_in_the_mean(chain: Chain, plain: Plain, caught: Caught) -> None:
    """NovaSky-AI/SkyRL#462; THUDM/slime#65."""
    found, losses = sft_losses(chain, plain, caught, layout="padded")
    assert found == pytest.approx(float(losses.mean()), abs=1e-5)


# -- reward models ---------------------------------------------------------------------------------


def plain_scores(chain: Chain, run: Run, groups: Sequence[TokenGroup]) -> list[list[float]]:
    """Scores at the last tokens, one sequence at a time."""
    model = plain_model(run.model_dir, chain.lab.store.cache)
    head = PlainHead.load(run.model_dir)
    with torch.no_grad():
        return [[float(head.along(model, g.prompt, c)[-1]) for c in g.completions] for g in groups]


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "rewards normalised wrongly",
    "scores of the training completions have mean 0 and deviation 1: fitted there, applied once",
    issue="zai-org/ImageReward#7",
)
@catches(
    "alignlab.stages.reward",
    'values = scores_of(backbone, "reward", groups, engine)',
    'values = scores_of(backbone, "reward", held_out, engine)',
)
@catches(
    "alignlab.stages.reward",
    'backbone.set_normalization("reward", float(values.mean()), float(values.std()))',
    'backbone.set_normalization("reward", float(values.mean()), float(values.std())); '
    'backbone.set_normalization("reward", float(values.mean()), float(values.std()))',
)
@catches(
    "alignlab.models.heads",
    "self.offset.sub_(mean).div_(std)",
    "self.offset.sub_(mean)",  # divided before the mean was taken off
)
def test_rewards_normalised_wrongly(chain: Chain) -> None:
    """zai-org/ImageReward#7: mean and deviation of the test set."""
    stage = chain.lab.stage("reward", steps=1)
    run = chain.lab.run(stage, chain.inputs("init", "annotations"))
    scores = plain_scores(chain, run, read(chain.annotations, "train"))
    flat = torch.tensor([value for values in scores for value in values])
    assert float(flat.mean()) == pytest.approx(0, abs=1e-4)
    assert float(flat.std()) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "prompts weighted by their pairs",
    "a ranking of K is one element of the batch: three pairs weigh as much as one",
    issue="hpcaitech/ColossalAI#3320",
)
@catches(
    "alignlab.objectives.ranking",
    "return segment_mean(loss, scores.pair_group, scores.groups)",
    "return segment_sum(loss, scores.pair_group, scores.groups)",
)
@catches(
    "alignlab.stages.reward",
    "return float(len(step))",
    "return float(sum(len(g.verdict.pairs()) for g in step))",
)
def test_prompts_weighted_by_their_pairs(chain: Chain) -> None:
    """hpcaitech/ColossalAI#3320; openai/following-instructions-human-feedback#2."""
    annotations = chain.lab.new_run("annotate")
    annotations.path.mkdir(parents=True)
    lines = (chain.annotations.path / "annotations.jsonl").read_text().splitlines()
    with (annotations.path / "annotations.jsonl").open("w", encoding="utf-8") as file:
        for number, line in enumerate(lines):
            row = json.loads(line)
            if number % 2:  # every other prompt has two completions, one pair
                for name in ("completions", "completion_ids", "truncated"):
                    row[name] = row[name][:2]
                row["verdict"]["scores"] = row["verdict"]["scores"][:2]
            file.write(json.dumps(row) + "\n")
    # The step is so small that the saved weights are those of the loss.
    tiny = {"normalize": False, "optimizer__learning_rate": 1e-12}
    stage = chain.lab.stage("reward", steps=1, batch=6, **tiny)
    run = chain.lab.run(stage, {"init": chain.sft, "annotations": annotations}, token_budget=SMALL)
    groups = picked(annotations, 6)
    assert {len(g.completions) for g in groups} == {2, 3}
    per_prompt = []
    for group, scores in zip(groups, plain_scores(chain, run, groups), strict=True):
        worth = group.verdict.scores
        terms = [
            softplus(scores[j] - scores[i]) + 0.01 * (scores[i] + scores[j]) ** 2
            for i in range(len(worth))
            for j in range(len(worth))
            if worth[i] > worth[j]
        ]
        per_prompt.append(mean(terms))
    assert first(run)["loss"] == pytest.approx(mean(per_prompt), abs=1e-5)


# -- the forward pass ------------------------------------------------------------------------------


@pytest.mark.conformance(
    "silent bug",
    "log-probabilities in bfloat16",
    "reduced precision ends at the logits, rounded near the target's; the rest is float32",
    issue="genlm/genlm-backend#66",
)
@catches(
    "alignlab.models.logps",
    "precision = torch.promote_types(options.dtype, torch.float32)",
    "precision = options.dtype",
)
@catches(
    "alignlab.models.logps",
    "if torch.finfo(dtype).bits >= 32 or options.softcap is not None:",
    "if True:",  # logits rounded as they are, not relative to the target's: 8 times the error
)
def test_log_probabilities_in_bfloat16(record_property: Any) -> None:
    """genlm/genlm-backend#66; huggingface/trl#7063; deepspeedai/DeepSpeedExamples#754."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 32, generator=generator).bfloat16()
    weight = torch.randn(500, 32, generator=generator).bfloat16()
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)
    targets = torch.multinomial(exact.exp(), 1, generator=generator)  # likely ones, as in text
    found = head_logps(hidden, Head(weight), targets[:, 0])
    assert found.dtype == torch.float32
    error = (found.double() - exact.gather(1, targets)[:, 0]).square().mean().sqrt()
    record_property("measured", f"rms error {float(error):.4f} nats")
    assert float(error) < 0.005


def packed_logps(chain: Chain, groups: Sequence[TokenGroup]) -> Tensor:
    """Log-probabilities of all completions under the SFT model, from one flat batch."""
    stage, _ = chain.prefer()
    backbone = Backbone.load(stage.backbone, chain.lab.store.cache)
    backbone.add("policy", source=chain.sft.model_dir, trainable=False)
    with torch.no_grad(), backbone.view("policy") as view:
        return view.logps(flatten(groups)).double()


def alone(chain: Chain, plain: Plain, groups: Sequence[TokenGroup]) -> Tensor:
    """The same, every completion alone with its prompt."""
    parts = [plain.logps(chain.sft, g.prompt, c) for g in groups for c in g.completions]
    return torch.cat(parts)


@pytest.mark.conformance(
    "silent bug",
    "leak between packed prompts",
    "a sequence sees nothing of its neighbours in the batch",
    issue="axolotl-ai-cloud/axolotl#1375",
)
@catches(
    "alignlab.models.attention_plan",
    "yield _Row((span.prompt[0], span.prompt[0]), (span.prompt[0], first), lead)",
    "yield _Row((0, span.prompt[0]), (span.prompt[0], first), lead)",
)
def test_leak_between_packed_prompts(chain: Chain, plain: Plain) -> None:
    """axolotl-ai-cloud/axolotl#1375; hiyouga/LlamaFactory#4224; huggingface/nanoVLM#204."""
    groups = [group.keep((0,)) for group in read(chain.annotations, "train")[:5]]
    found = packed_logps(chain, groups)
    assert float((found - alone(chain, plain, groups)).abs().max()) < 1e-4


@pytest.mark.conformance(
    "silent bug",
    "leak between completions",
    "completions that share a prompt do not see each other",
    issue="frankxwang/dpo-prefix-sharing#2",
)
@catches(
    "alignlab.models.attention_plan",
    "yield _Row(span.prompt, completion, lead)",
    "yield _Row((span.prompt[0], completion[0]), completion, lead)",
)
def test_leak_between_completions(chain: Chain, plain: Plain) -> None:
    """frankxwang/dpo-prefix-sharing#2 (logits of the second answer differed)."""
    groups = read(chain.annotations, "train")[:5]
    found = packed_logps(chain, groups)
    assert float((found - alone(chain, plain, groups)).abs().max()) < 1e-4


@pytest.mark.conformance(
    "silent bug",
    "positions not reset",
    "positions start anew with every prompt, and every completion continues from its own prompt",
    issue="hiyouga/LlamaFactory#7318",
)
@catches(
    "alignlab.data.pack",
    "position = within + np.repeat(np.where(prompt, 0, prompt_length), length)",
    "position = index",
)
@catches(
    "alignlab.data.pack",
    "position = within + np.repeat(np.where(prompt, 0, prompt_length), length)",
    "position = within",  # a completion would start at 0 again
)
def test_positions_not_reset(chain: Chain, plain: Plain) -> None:
    """hiyouga/LlamaFactory#7318, #7754; huggingface/nanoVLM#201."""
    groups = read(chain.annotations, "train")[:5]
    found = packed_logps(chain, groups)
    assert float((found - alone(chain, plain, groups)).abs().max()) < 1e-4
