"""Laws that every preference objective obeys: the tests walk conf/objective, new files included.

A law about numbers is tried on columns of log-probabilities. A law about where tokens stand
(packing, padding) is tried on a random model, through the code that a stage uses: `flatten`, a
view, sums per completion, pairs or singles, the objective.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import planted

from alignlab.data.group import TokenGroup, Verdict
from alignlab.data.pack import flatten
from alignlab.models.grouped_attention import register
from alignlab.models.view import View
from alignlab.objectives.declaration import declaration
from alignlab.objectives.stable import segment_sum
from alignlab.stages.packed import Packed
from alignlab.stages.terms import Terms
from alignlab.tensors import GroupLogps, PairLogps, SingleLogps

CONF = Path(__file__).parents[2] / "conf" / "objective"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))

# Value at policy = reference, where both answers have 4 tokens and −4 nats. A method that is not in
# the table is held to every other law.
AT_REFERENCE = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "rdpo": math.log(2),
    "dpo_norm": math.log(2),
    "ipo": 25.0,  # (1/(2·0.1))²
    "ipo_sum": 25.0,
    "hinge": 1.0,
    "kto": 0.5,
    "orpo": 1 + 0.1 * math.log(2),
    "simpo": math.log1p(math.exp(1)),  # −log σ(−2·0.5)
    "slic": 1 + 0.1 * 4,
    "cpo": math.log(2) + 1,  # −log σ(0) + λ·4/4
    "dpo_nll": math.log(2) + 0.2,
    "dpop": math.log(2),
    "dpo_length": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "sppo": 50.0,  # 2·(1/(2·0.1))²
    "cal_dpo": 50 + math.log(2),
    "dpo_shift": math.log(2),
    "alphapo": math.log1p(math.exp(1)),  # as SimPO: equal rewards
    "simper": 0.0,
    "chipo": math.log(2),
    "fdpo": math.log(2),
    "exo": -math.log(2) - math.log(0.001 * 0.999) / 2,
    "discopop": (1 + math.log(2)) / 2,
    "bco": math.log(2),
    "dpo_ranking": math.log(2),
    "rrhf": 4.0,  # λ·4
    "info_nca": math.log(2),  # two completions
    "nca": 2 * math.log(2),
    # Σ ½·(log ½ − log p), p = softmax(0, −1/0.1): log p = (0, −10) − log(1 + e⁻¹⁰)
    "exo_scores": 5 - math.log(2) + math.log1p(math.exp(-10)),
}

# Methods that do not raise the chosen answer and lower the rejected one at policy = reference,
# and what they do instead, as slopes in the log-probs (chosen, rejected).
OTHERWISE = {
    "apo_down": "0 +",  # the two pulls on the chosen answer cancel
    "discopop": "+ -",  # the loss that was found by search turns the wrong way there
    "rrhf": "- 0",  # equal answers are in order; the likelihood alone raises the chosen one
}


@functools.cache
def objective(name: str):
    values = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, function = values.pop("_target_").rpartition(".")
    return functools.partial(getattr(importlib.import_module(module), function), **values)


@dataclasses.dataclass(frozen=True)
class Data:
    """B examples in the view that an objective wants, built from four columns of log-probs."""

    policy: PairLogps | SingleLogps | GroupLogps
    reference: PairLogps | SingleLogps | GroupLogps

    def loss(self, name: str, z: float = 0.25) -> torch.Tensor:
        return self.under(objective(name), z)

    def under(self, f, z: float = 0.25) -> torch.Tensor:
        needs = declaration(f)
        arguments = [self.policy]
        arguments += [self.reference] if needs.needs_reference else []
        given = {"kl_point": needs.needs_kl_point, "log_ratio_shift": needs.needs_shift}
        return f(*arguments, **{k: torch.tensor(z) for k, needed in given.items() if needed})

    def map(self, f) -> Data:
        return Data(
            *(
                type(x)(**{k: f(v) if torch.is_tensor(v) else v for k, v in vars(x).items()})
                for x in vars(self).values()
            )
        )


def data(name: str, rows: list[tuple], dtype=torch.float64) -> Data:
    """Rows of (log-prob policy a, b, reference a, b, length a, b); b is unused for single ones."""
    columns = list(zip(*rows, strict=True))
    logps = [torch.tensor(c, dtype=dtype) for c in columns[:4]]
    lengths = [torch.tensor(c) for c in columns[4:]]
    if declaration(objective(name)).view == "pair":
        return Data(PairLogps(*logps[:2], *lengths), PairLogps(*logps[2:], *lengths))
    if declaration(objective(name)).view == "group":
        return Data(*(groups_of_two(*pair, *lengths) for pair in (logps[:2], logps[2:])))
    thumbs = lengths[1] % 2 == 0
    return Data(
        SingleLogps(logps[0], lengths[0], thumbs), SingleLogps(logps[2], lengths[0], thumbs)
    )


def groups_of_two(better, worse, *lengths) -> GroupLogps:
    """Prompts with two completions each, the first ranked above the second."""
    every = torch.arange(len(better))
    return GroupLogps(
        completion=torch.stack([better, worse], 1).flatten(),
        length=torch.stack(lengths, 1).flatten(),
        utility=torch.tensor([0.0, -1.0], dtype=better.dtype).repeat(len(better)),
        group=every.repeat_interleave(2),
        better=2 * every,
        worse=2 * every + 1,
        pair_group=every,
        groups=len(better),
    )


def logp(low: float, high: float):
    return st.floats(low, high, allow_nan=False)


def rows(low: float, high: float, at_least: int = 1):
    length = st.integers(1, 40)
    row = st.tuples(*[logp(low, high)] * 4, length, length)
    return st.lists(row, min_size=at_least, max_size=6)


def gradients(batch: Data, name: str, **options) -> list[torch.Tensor]:
    """Of the summed loss in every log-prob: chosen and rejected apart, or (B,) of single ones."""
    wanted = [k for k in vars(batch.policy) if k in ("chosen", "rejected", "completion")]
    leaves = [getattr(batch.policy, k).clone().requires_grad_() for k in wanted]
    policy = dataclasses.replace(batch.policy, **dict(zip(wanted, leaves, strict=True)))
    loss = Data(policy, batch.reference).loss(name, **options)
    found = list(torch.autograd.grad(loss.sum(), leaves))
    if isinstance(policy, GroupLogps):
        return [found[0][policy.better], found[0][policy.worse]]
    return found


def test_there_is_a_yaml_per_method():
    assert set(AT_REFERENCE) <= set(NAMES)


@pytest.mark.slow
@pytest.mark.conformance(
    "law", "every objective", "loss and gradient are finite in float32 for log-probs down to −1e5"
)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=40)
@given(rows=rows(-1e5, 0.0))
def test_loss_and_gradient_are_finite_at_extreme_log_probs(name, rows):
    batch = data(name, rows, torch.float32)
    assert batch.loss(name).shape == (len(rows),)
    assert torch.isfinite(batch.loss(name)).all()
    assert all(torch.isfinite(g).all() for g in gradients(batch, name))


@pytest.mark.slow
@pytest.mark.conformance(
    "law", "every objective", "loss and gradient are finite at probability 1 and at −1e5 nats"
)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chosen", [0.0, -1e-9, -1e-6, -1e5])
@pytest.mark.parametrize("rejected", [0.0, -1e-9, -1e-6, -1e5])
def test_certainty_and_impossibility_are_finite(name, chosen, rejected):
    batch = data(name, [(chosen, rejected, rejected, chosen, 1, 2)], torch.float32)
    assert torch.isfinite(batch.loss(name)).all()
    assert all(torch.isfinite(g).all() for g in gradients(batch, name))


@pytest.mark.slow
@pytest.mark.conformance(
    "law", "every objective", "permuting the examples permutes the losses, bit for bit"
)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01, at_least=2), seed=st.integers(0, 99))
def test_permuting_the_examples_permutes_the_losses(name, rows, seed):
    batch = data(name, rows)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    permuted = data(name, [rows[i] for i in order.tolist()])
    assert torch.equal(permuted.loss(name), batch.loss(name)[order])


@pytest.mark.slow
@pytest.mark.conformance(
    "law", "every objective", "the halves of a batch give its losses and gradients, bit for bit"
)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01, at_least=2))
def test_the_parts_of_a_batch_are_the_batch(name, rows):
    batch, cut = data(name, rows), len(rows) // 2
    parts = [data(name, rows[:cut]), data(name, rows[cut:])]
    assert torch.equal(torch.cat([part.loss(name) for part in parts]), batch.loss(name))
    halves = [torch.cat(g) for g in zip(*(gradients(p, name) for p in parts), strict=True)]
    for half, whole in zip(halves, gradients(batch, name), strict=True):
        assert torch.equal(half, whole)


@pytest.mark.slow
@pytest.mark.conformance("law", "every objective", "float32 agrees with float64 to 1e-5")
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01))
def test_float32_agrees_with_float64(name, rows):
    exact = data(name, rows, torch.float32).map(  # the same rounded inputs for both
        lambda x: x.double() if x.is_floating_point() else x
    )
    rounded = exact.map(lambda x: x.float() if x.is_floating_point() else x)
    scale = max(1.0, *(abs(v) for row in rows for v in row[:4]))
    # 1e-5 relative, and a few roundings of log-probs of this size times the loss's slope
    slope = max(1.0, *(float(g.abs().max()) for g in gradients(exact, name)))
    torch.testing.assert_close(
        rounded.loss(name).double(), exact.loss(name), rtol=1e-5, atol=1e-6 * scale * slope
    )
    assert rounded.loss(name).dtype == torch.float32


@pytest.mark.conformance("law", "every objective", "the value at policy = reference is the paper's")
@pytest.mark.parametrize("name", [n for n in NAMES if n in AT_REFERENCE])
def test_value_at_the_reference(name):
    same = data(name, [(-4.0, -4.0, -4.0, -4.0, 4, 4), (-4.0, -4.0, -4.0, -4.0, 4, 4)])
    torch.testing.assert_close(
        same.loss(name, z=0.0), torch.full((2,), AT_REFERENCE[name], dtype=torch.float64)
    )


@pytest.mark.slow
@pytest.mark.conformance(
    "law",
    "every objective",
    "at policy = reference a step raises the chosen and lowers the rejected",
)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(mean=logp(-5.0, -0.05), lengths=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_at_the_reference_a_step_prefers_the_chosen(name, mean, lengths):
    a, b = (mean * n for n in lengths)
    if declaration(objective(name)).view == "single":
        two = [(a, 0, a, 0, 3, 2), (b, 0, b, 0, 3, 1)]
        better, worse = gradients(data(name, two), name, z=0.0)[0].tolist()
    else:
        if not declaration(objective(name)).needs_reference:
            lengths, b = (lengths[0], lengths[0]), a  # equal answers: no margin is met yet
        slopes = gradients(data(name, [(a, b, a, b, *lengths)]), name)
        better, worse = (slope.item() for slope in slopes)
    signs = " ".join("0" if abs(x) < 1e-12 else "+" if x > 0 else "-" for x in (better, worse))
    assert signs == OTHERWISE.get(name, "- +")


@pytest.mark.conformance("law", "every objective", "every number of the yaml changes the loss")
@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_the_yaml_is_used(name):
    """Changing any number changes the loss of some example: no dead hyperparameter."""
    rows = [(-9.0, -7.0, -8.0, -9.5, 3, 5), (-2.0, -9.0, -4.0, -3.0, 4, 2)]
    rows += [(-1.0, -99.0, -9.0, -3.0, 4, 2)]  # far beyond any bound
    before, f = data(name, rows).loss(name), objective(name)
    for key, value in f.keywords.items():
        if isinstance(value, str):
            continue
        other = functools.partial(f.func, **{**f.keywords, key: 0.7 * value + 0.04})
        assert not torch.allclose(data(name, rows).under(other), before), key


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_line_of_the_yaml_is_explained(path):
    head, *lines = path.read_text().splitlines()
    assert head.startswith("# ")
    assert lines[0].startswith("_target_: alignlab.objectives.")
    assert all("# " in line for line in lines[1:]), "a value without a comment"


LIKELIHOOD = ("dpo_nll",)  # has a likelihood beside its log-ratios
WITH_REFERENCE = [
    n for n in NAMES if declaration(objective(n)).needs_reference and n not in LIKELIHOOD
]


@pytest.mark.slow
@pytest.mark.conformance(
    "law",
    "every objective with a reference",
    "only log π − log π_ref counts: a shift of both changes nothing",
)
@pytest.mark.parametrize("name", WITH_REFERENCE)
@settings(deadline=None, max_examples=25)
@given(rows=rows(-300.0, -0.01), shift=st.tuples(logp(-50.0, 50.0), logp(-50.0, 50.0)))
def test_a_shift_of_policy_and_reference_changes_nothing(name, rows, shift):
    a, b = shift
    moved = [(pa + a, pb + b, ra + a, rb + b, *lengths) for pa, pb, ra, rb, *lengths in rows]
    before, after = data(name, rows), data(name, moved)
    # the slope of a squared loss grows with the gap, and with it what the shift's rounding costs
    slope = max(1.0, *(float(g.abs().max()) for g in gradients(before, name)))
    torch.testing.assert_close(after.loss(name), before.loss(name), rtol=1e-9, atol=1e-11 * slope)


# ------------------------------------------------------------------- where the tokens of it stand
VOCABULARY = 12


@functools.cache
def model(seed: int):
    """A random one-layer GPT-2, which stays in double precision throughout (Llama's norm does not).

    Its predictions are far from uniform.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=128,
        n_embd=16,
        n_layer=1,
        n_head=2,
        initializer_range=0.4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=register(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).double().eval()


def view_of(seed: int, layout: str) -> View:
    return View("any", model(seed), None, layout=layout, dtype=torch.float32)


@st.composite
def prompt_groups(draw) -> list[TokenGroup]:
    """Prompts of 1 to 6 tokens with two or three completions of 1 to 7, ranked, ties included."""
    token, found = st.integers(1, VOCABULARY - 1), []
    for row in range(draw(st.integers(2, 4))):
        count = draw(st.integers(2, 3))
        ranks = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
        if len(set(ranks)) == 1:  # a tie of all: no objective has a term for it
            ranks[0] += 1
        parts = [draw(st.lists(token, min_size=1, max_size=6))]
        parts += [draw(st.lists(token, min_size=1, max_size=7)) for _ in range(count)]
        prompt, *completions = (np.array(part, dtype=np.int32) for part in parts)
        verdict = Verdict("ranking", ranks=tuple(ranks))
        found.append(TokenGroup(prompt, tuple(completions), verdict, row, str(row)))
    return found


def step(name: str, parts: list[list[TokenGroup]], layout: str) -> list[torch.Tensor]:
    """Loss of an optimizer step made of the micro-batches ``parts``, and its gradient."""
    need = declaration(objective(name))
    terms = Terms(objective(name), need, None)
    count = terms.count([group for part in parts for group in part])
    total = torch.zeros((), dtype=torch.float64)
    for part in parts:
        batch = flatten(part)
        extra = {}
        if need.needs_reference:
            with torch.no_grad():
                logps = view_of(1, layout).logps(batch)
            extra["reference"] = segment_sum(logps, batch.target_completion, batch.completions)
        statistics = {"kl_point": need.needs_kl_point, "log_ratio_shift": need.needs_shift}
        extra |= {k: torch.tensor(0.25) for k, needed in statistics.items() if needed}
        loss, _ = terms.loss(view_of(0, layout), Packed(batch, tuple(part), count, extra))
        total = total + loss
    return [total, *torch.autograd.grad(total, list(model(0).parameters()))]


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """To 1e-10 of the largest value."""
    scale = max(1.0, *(float(x.detach().abs().max()) for x in one))
    for a, b in zip(one, other, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * scale)


@pytest.mark.slow
@pytest.mark.conformance(
    "law",
    "every objective",
    "packed into micro-batches in any way and order: the same loss and gradient to 1e-10",
)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=8)
@given(groups=prompt_groups(), seed=st.integers(0, 99))
def test_packing_changes_nothing(name, groups, seed):
    generator = np.random.default_rng(seed)
    bins = generator.integers(0, len(groups), len(groups))
    order = generator.permutation(len(groups))
    parts = [[groups[i] for i in order if bins[i] == b] for b in range(len(groups))]
    parts = [part for part in parts if part]
    assert_same(step(name, [groups], "grouped"), step(name, parts, "grouped"))


@pytest.mark.slow
@pytest.mark.conformance(
    "law",
    "every objective",
    "pad tokens change nothing: padded to any width equals the flat batch to 1e-10",
)
@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=8)
@given(groups=prompt_groups(), width=st.integers(1, 60))
def test_padding_changes_nothing(name, groups, width):
    # A neighbour that has no term of its own, but all rows are padded to its width.
    # One completion beats none and loses to none, so it has neither a pair nor a thumb.
    alone = Verdict("ranking", ranks=(0,))
    wide = TokenGroup(np.full(width, 3, np.int32), (np.full(20, 4, np.int32),), alone, 9, "wide")
    flat = step(name, [groups], "grouped")
    assert_same(flat, step(name, [groups], "padded"))
    assert_same(flat, step(name, [[*groups, wide]], "padded"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "old", "new", "broken"),
    [
        ("alignlab.stages.terms", "losses.sum() / packed.count", "losses.mean()", "packing"),
        (
            "alignlab.models.layout",
            ".flatten(0, 1).index_select(0, plan.flat_index)",
            ".flatten(0, 1)[: len(plan.flat_index)]",
            "padding",
        ),
    ],
    ids=["mean of micro-batch means", "padded positions read"],
)
def test_the_laws_of_place_can_be_broken(module, old, new, broken):
    def group(row: int, *lengths: int) -> TokenGroup:
        completions = tuple(np.full(n, 3 + n, np.int32) for n in lengths)
        ranks = Verdict("ranking", ranks=tuple(range(len(lengths))))
        return TokenGroup(np.full(row + 2, 3, np.int32), completions, ranks, row, str(row))

    groups = [group(0, 1, 2, 3), group(1, 4, 2), group(2, 5, 1)]
    parts, layout = ([groups[:1], groups[1:]], "grouped")
    if broken == "padding":
        parts, layout = [groups], "padded"
    for name in NAMES:
        whole = step(name, [groups], "grouped")
        assert_same(whole, step(name, parts, layout))
        with planted(module, old, new), pytest.raises(AssertionError):
            assert_same(whole, step(name, parts, layout))
