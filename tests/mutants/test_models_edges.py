"""Where mutants of the log-prob path hid: number formats, counts of matrix products, odd shapes.

Everything is against the plain definition; nothing here builds a transformer.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from counting import Counting
from test_grouped_attention import by_definition
from torch.nn.functional import scaled_dot_product_attention as sdpa

from alignlab.models import attention_plan as planning
from alignlab.models import grouped_attention as ga
from alignlab.models import logps, smoothing
from alignlab.models.attention_plan import NO_LEAD, Block, Lead, attention_plan
from alignlab.models.flex import FlexPlan
from alignlab.models.grouped_attention import grouped_attention, is_placeholder, placeholder_mask
from alignlab.models.logps import Head, head_of, token_logps, token_logps_entropy
from alignlab.tensors import GroupSpan

NOTHING = torch.nn.Identity()


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).to(dtype)


def bits(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal in every bit, and in number format."""
    assert found.dtype == wanted.dtype
    assert torch.equal(found, wanted)


def close(found: torch.Tensor, wanted: torch.Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------- the head


def test_a_head_s_logits_are_float32_products_of_the_states_format():
    hidden = normal(3, 4, dtype=torch.bfloat16)
    weight, bias = normal(5, 4, dtype=torch.float32, seed=1), normal(5, dtype=torch.float32, seed=2)
    plain = torch.nn.functional.linear(hidden, weight.bfloat16(), bias.bfloat16()).float()
    bits(Head(weight, bias).logits(hidden), plain)
    bits(Head(weight, bias, scale=2.0).logits(hidden), 2 * plain)
    unbiased = torch.nn.functional.linear(hidden, weight.bfloat16()).float()
    bits(Head(weight).logits(hidden), unbiased)
    bits(Head(weight, bias, 0.5, 3.0).logits(hidden), 3 * torch.tanh(0.5 * plain / 3))


def model(linear, **config):
    text = SimpleNamespace(**config)
    outer = SimpleNamespace(logit_scale=100.0, get_text_config=lambda: text)
    return SimpleNamespace(config=outer, get_output_embeddings=lambda: linear)


def test_head_of_reads_every_scale_of_the_text_configuration():
    linear = torch.nn.Linear(2, 3)
    head = head_of(
        model(
            linear,
            logits_scaling=4,
            logit_scale=3,
            lm_head_multiplier=0.5,
            final_logit_softcapping=30.0,
        )
    )
    assert (head.scale, head.softcap) == (3 * 0.5 / 4, 30.0)
    assert head.weight is linear.weight
    assert head.bias is linear.bias
    plain = head_of(model(torch.nn.Linear(2, 3, bias=False)))
    assert (plain.scale, plain.softcap, plain.bias) == (1.0, None, None)
    with pytest.raises(ValueError, match="no language-model head"):
        head_of(model(None))


def case(trained="hwb", rows=6, width=4, words=7, dtype=torch.float64):
    """States, head and targets; ``trained`` names which of states, weight and bias are."""
    hidden, weight = normal(rows, width, dtype=dtype), normal(words, width, dtype=dtype, seed=1)
    bias = normal(words, dtype=dtype, seed=2)
    for name, x in zip("hwb", (hidden, weight, bias), strict=True):
        x.requires_grad_(name in trained)
    return hidden, weight, bias, torch.arange(rows) % words


def reference(hidden, weight, bias, targets, scale=1.0):
    z = scale * (hidden @ weight.T + bias)
    return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("chunk", [2, 6])
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("trained", ["h", "w", "b", "hw", "hb", "wb", "hwb"])
def test_every_choice_of_what_is_trained_gets_its_gradient(trained, scale, chunk):
    hidden, weight, bias, targets = case(trained)
    ours = token_logps(hidden, Head(weight, bias, scale), targets, chunk=chunk)
    theirs = reference(hidden, weight, bias, targets, scale)
    close(ours, theirs)
    leaves = [x for x in (hidden, weight, bias) if x.requires_grad]
    seed = normal(len(ours), seed=3)
    for mine, other in zip(
        torch.autograd.grad((ours * seed).sum(), leaves),
        torch.autograd.grad((theirs * seed).sum(), leaves),
        strict=True,
    ):
        close(mine, other)


@pytest.mark.parametrize(
    ("trained", "chunk", "forward", "backward"),
    [
        ("", 2, (3, 0), None),
        ("h", 2, (6, 3), (0, 0)),  # a frozen head: the Jacobian is stored
        ("hwb", 2, (3, 0), (9, 3)),  # recomputed chunk by chunk
        ("hwb", 6, (1, 1), (2, 0)),  # one chunk: nothing to recompute
        ("w", 6, (1, 1), (1, 0)),
        ("b", 6, (1, 1), (0, 0)),
        ("b", 5, (2, 0), (2, 2)),
    ],
)
def test_matrix_products_and_gradients_of_logits(trained, chunk, forward, backward):
    hidden, weight, bias, targets = case(trained)
    with Counting() as first:
        logp = token_logps(hidden, Head(weight, bias), targets, chunk=chunk)
    assert (first.calls["mm"], first.calls["scatter_add_"]) == forward
    if backward:
        with Counting() as second:
            logp.sum().backward()
        assert (second.calls["mm"], second.calls["scatter_add_"]) == backward


@pytest.mark.parametrize("trained", ["h", "hwb"])
def test_without_gradients_nothing_is_prepared_for_them(trained):
    hidden, weight, bias, targets = case(trained)
    with torch.no_grad(), Counting() as counted:
        token_logps(hidden, Head(weight, bias), targets, chunk=6)
    assert (counted.calls["mm"], counted.calls["scatter_add_"]) == (1, 0)
    assert counted.calls["exp"] == 0  # the entropy is not computed either


def test_chunks_hold_the_stated_number_of_logits():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logps, "CHUNK_ELEMENTS", 100)
        for words, rows in ((5, 20), (50, 16)):  # 100/5 rows, and at least 16
            hidden, weight, bias, targets = case("", rows=45, width=3, words=words)
            with Counting() as counted:
                token_logps(hidden, Head(weight, bias), targets)
            assert counted.rows == [rows, rows, 45 - 2 * rows]


def test_float32_is_the_plain_computation_bit_for_bit():
    hidden, weight, bias, targets = case("", dtype=torch.float32, rows=9, width=16, words=33)
    z = torch.nn.functional.linear(hidden, weight, bias)
    plain = z.gather(1, targets[:, None])[:, 0] - torch.logsumexp(z, -1)
    bits(token_logps(hidden, Head(weight, bias), targets, chunk=9), plain)


def test_autocast_rounds_states_and_weights():
    # 1.001 is 1 in bfloat16: the logits are 0 and 100, not 100.1
    hidden, weight = torch.tensor([[1.001]]), torch.tensor([[0.0], [100.0]])
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logps(hidden, Head(weight), torch.tensor([0]))
    close(found, torch.tensor([-100.0]), atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 20.0])
def test_reduced_precision_with_a_soft_cap_stays_near_the_exact_value(softcap):
    rounded = (x.bfloat16().float() for x in case("")[:3])
    hidden, weight, bias = rounded
    targets = torch.arange(6)
    head = Head(weight, bias, 1.5, softcap)
    exact = head.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logps(hidden, head, targets)
    assert found.dtype == torch.float32
    # a bfloat16 logit of at most 8 is off by at most 1.5 · 2⁻⁶; so is the log-sum-exp
    assert (found - exact).abs().max() < 0.05


def test_a_large_bias_is_subtracted_before_logits_are_rounded():
    # Logits near 60 have steps of 0.25 in bfloat16; relative to the target's they lie near 0.
    hidden, weight = (0.3 * normal(40, 8, seed=s) for s in (0, 1))
    hidden, weight = hidden.bfloat16().float(), weight.bfloat16().float()
    bias = (60 + normal(40, seed=2)).bfloat16().float()
    bias[::2] = 0  # every likely token stands between two that are not
    targets = torch.arange(20).repeat_interleave(2) * 2 + 1
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logps(hidden, Head(weight, bias), targets)
    assert (found - reference(hidden, weight, bias, targets)).abs().max() < 0.02


def test_a_log_probability_is_never_positive_under_autocast():
    # Targets with nearly all of the mass: a target logit from anywhere but the rounded row itself
    # can exceed the row's log-sum-exp (it did, by 5e-4).
    hidden, weight = (2 * normal(64, 96, dtype=torch.bfloat16, seed=s).float() for s in (0, 1))
    targets = (hidden @ weight.T).argmax(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logps(hidden, Head(weight), targets)
    assert found.max() <= 0
    assert found.median() > -1e-3


def test_a_backward_pass_under_autocast_stays_in_the_forward_s_precision():
    gradients = []
    for enabled in (False, True):
        hidden, weight, bias, targets = case(dtype=torch.float32)
        logp = token_logps(hidden, Head(weight, bias), targets, chunk=2)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logp.sum().backward()
        gradients.append((hidden.grad, weight.grad, bias.grad))
    hidden, weight, bias, targets = case(dtype=torch.float32)
    reference(hidden, weight, bias, targets).sum().backward()
    for outside, inside, plain in zip(
        *gradients, (hidden.grad, weight.grad, bias.grad), strict=True
    ):
        bits(inside, outside)
        close(outside, plain, atol=1e-5)


def test_entropy_is_only_computed_on_request_and_for_every_chunk():
    hidden, weight, bias, targets = case("h")
    _, found = token_logps_entropy(hidden, Head(weight, bias), targets, chunk=4)
    wanted = torch.distributions.Categorical(logits=hidden @ weight.T + bias).entropy()
    close(found, wanted)


# ------------------------------------------------------------------------- attention of one block


SDPA = "transformers.integrations.sdpa_attention.sdpa_attention_forward"


def no_plan(q, k, v, mask=None, **options):
    return grouped_attention(NOTHING, q, k, v, mask, **options)[0]


def seen_by(query_length, key_length):
    """Causal, the queries being the last of the keys."""
    past = key_length - query_length
    return torch.tensor([[j <= past + i for j in range(key_length)] for i in range(query_length)])


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "heads"), [(2, (6, 2)), (1, (2, 2)), (5, (3, 1))])
def test_soft_capped_decoding_equals_the_definition(queries, heads, masked, scaling):
    q, k, v = (
        normal(2, h, length, 3, seed=s)
        for s, h, length in ((0, heads[0], queries), (1, heads[1], 5), (2, heads[1], 5))
    )
    seen = seen_by(queries, 5)
    mask = seen & torch.tensor([True, False, True, True, True]) if masked else None
    found = no_plan(q, k, v, mask, softcap=2.0, scaling=scaling)
    k, v = (x.repeat_interleave(heads[0] // heads[1], 1) for x in (k, v))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * (3**-0.5 if scaling is None else scaling)
    scores = 2 * torch.tanh(scores / 2)
    weights = scores.masked_fill(~(seen if mask is None else mask), -torch.inf).softmax(-1)
    close(found, torch.einsum("bhij,bhjd->bihd", weights, v))


@pytest.mark.parametrize("placed", [False, True])
def test_one_decoded_token_sees_all_keys(placed):
    q, k, v = normal(1, 2, 1, 4), normal(1, 2, 5, 4, seed=1), normal(1, 2, 5, 4, seed=2)
    mask = placeholder_mask("cpu") if placed else None
    found = no_plan(q, k, v, mask, scaling=0.7)
    close(found, sdpa(q, k, v, scale=0.7).transpose(1, 2))
    close(no_plan(q, k, v, mask, softcap=1e9, scaling=0.7), found, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "heads", "shared", "keys"), [(1, 6, 3, 4), (3, 6, 2, 5)])
def test_one_decoded_token_shares_key_heads(rows, heads, shared, keys, masked):
    q = normal(rows, heads, 1, 4)
    k, v = normal(rows, shared, keys, 4, seed=1), normal(rows, shared, keys, 4, seed=2)
    mask = None
    if masked:
        mask = torch.arange(keys)[None] >= torch.arange(rows)[:, None]
        mask = mask[:, None, None]
    with mock.patch(SDPA, side_effect=AssertionError("the keys would be repeated")):
        found = no_plan(q, k, v, mask, scaling=0.7)
    many = [x.repeat_interleave(heads // shared, 1) for x in (k, v)]
    close(found, sdpa(q, *many, attn_mask=mask, scale=0.7).transpose(1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shared", "keys"), [(2, 5), (6, 5), (2, 400), (6, 400)])
def test_one_decoded_token_takes_a_mask_that_is_added(shared, keys, dtype):
    q = normal(3, 6, 1, 4).to(dtype)
    k, v = (normal(3, shared, keys, 4, seed=s).to(dtype) for s in (1, 2))
    seen = (torch.arange(keys)[None] >= torch.arange(3)[:, None])[:, None, None]
    added = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
    with mock.patch(SDPA, side_effect=AssertionError("CUDA's kernel refuses float32 here")):
        found = no_plan(q, k, v, added, scaling=0.7)
    many = [x.float().repeat_interleave(6 // shared, 1) for x in (k, v)]
    close(
        found.float(),
        sdpa(q.float(), *many, attn_mask=seen, scale=0.7).transpose(1, 2),
        atol=1e-6 if dtype == torch.float32 else 0.02,
    )


def test_one_decoded_token_in_bfloat16_without_a_mask():
    q = normal(2, 6, 1, 4).bfloat16()
    k, v = (normal(2, 3, 5, 4, seed=s).bfloat16() for s in (1, 2))
    found = no_plan(q, k, v, scaling=0.7)
    many = [x.float().repeat_interleave(2, 1) for x in (k, v)]
    close(found.float(), sdpa(q.float(), *many, scale=0.7).transpose(1, 2), atol=0.02)


@pytest.mark.parametrize(("heads", "shared", "length"), [(2, 2, 1), (2, 2, 4), (4, 2, 4)])
def test_more_tokens_or_own_keys_are_left_to_transformers(heads, shared, length):
    q, k, v = (normal(1, h, n, 4, seed=n) for h, n in ((heads, length), (shared, 5), (shared, 5)))
    with mock.patch(SDPA, return_value=("answer", None)) as asked:
        assert no_plan(q, k, v, None, scaling=0.3) == "answer"
    _, query, key, value, mask = asked.call_args.args
    assert (query is q, key is k, value is v, mask) == (True, True, True, None)
    assert asked.call_args.kwargs["scaling"] == 0.3


@pytest.mark.parametrize("lengths", [(1,), (2, 2), (3, 1), (5, 1, 2, 40, 4)])
def test_rows_of_their_own_see_all_of_themselves_and_nothing_else(lengths):
    q, k, v = (normal(1, 2, sum(lengths), 4, seed=s) for s in (1, 2, 3))
    plan = planning.own_rows(lengths, "cpu")
    found, _ = grouped_attention(torch.nn.Module(), q, k, v, None, scaling=0.7, alignlab_plan=plan)
    wanted = [
        sdpa(*part, scale=0.7)
        for part in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    ]
    close(found, torch.cat(wanted, 2).transpose(1, 2))


def test_the_plan_of_rows_of_their_own_lies_where_it_is_used():
    [block] = planning.own_rows((3, 1), "meta").blocks
    assert (block.rows, block.queries, block.keys) == (2, 3, 3)
    assert (block.mask.device.type, block.mask.shape) == ("meta", (2, 1, 1, 3))


def test_a_reduced_head_has_the_products_format_and_no_gradient():
    weight = torch.nn.Parameter(normal(7, 4))
    head = Head(weight, torch.nn.Parameter(normal(7)), 2.0, 3.0)
    plain = head.reduced()
    assert plain.weight.dtype == weight.dtype
    assert not plain.weight.requires_grad
    assert (plain.bias, plain.scale, plain.softcap) == (head.bias, 2.0, 3.0)
    hidden = normal(3, 4, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        small = head.reduced()
        close(small.logits(hidden), head.logits(hidden), atol=0)
    assert small.weight.dtype == torch.bfloat16
    assert not small.weight.requires_grad


@pytest.mark.parametrize(("heads", "length", "dim"), [(1, 2, 1), (1, 5, 1), (2, 2, 4)])
def test_a_lost_plan_is_an_error_in_any_shape(heads, length, dim):
    x = normal(1, heads, length, dim)
    with pytest.raises(RuntimeError, match="lost"):
        no_plan(x, x, x, placeholder_mask("cpu"))


def test_a_mask_of_one_token_is_no_placeholder():
    assert is_placeholder(placeholder_mask("cpu"))
    for other in (None, torch.ones(1, 1), torch.ones(1, 1, 1, 2), torch.ones(2, 1, 1, 1)):
        assert not is_placeholder(other)


def plan_of(*lengths: int):
    """One completion-free group per length."""
    ends = torch.tensor(lengths).cumsum(0).tolist()
    spans = [GroupSpan((end - n, end), ()) for end, n in zip(ends, lengths, strict=True)]
    return {ga.PLAN: attention_plan(tuple(spans), "cpu")}, tuple(spans)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_dropout_drops_weights_and_scales_the_rest(softcap):
    options, spans = plan_of(6)
    q, eye = normal(1, 2, 6, 6), torch.eye(6, dtype=torch.float64).expand(1, 2, 6, 6)
    torch.manual_seed(0)
    weights = grouped_attention(
        NOTHING, q, q, eye, None, scaling=0.3, dropout=0.5, softcap=softcap, **options
    )[0]
    whole = by_definition(q, q, eye, spans, 0.3, softcap)
    kept = weights != 0
    close(weights[kept], 2 * whole[kept])
    assert 0.2 < kept.sum() / (whole != 0).sum() < 0.8


def test_dropout_of_ordinary_attention_is_passed_on():
    x = normal(1, 2, 6, 4)
    module = torch.nn.Identity().train()
    assert (
        no_plan(x, x, x, dropout=0.0) != grouped_attention(module, x, x, x, None, dropout=0.9)[0]
    ).any()


@pytest.mark.parametrize("heads", [(4, 2), (2, 2), (6, 2), (2, 1)])
@pytest.mark.parametrize("lengths", [(2, 2), (4,), (1, 3), (1, 1, 1, 1)])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_blocks_whose_sizes_coincide(softcap, lengths, heads):
    # rows = queries = key heads, or queries = heads: where a wrong axis would not be an error
    options, spans = plan_of(*lengths)
    q, k, v = (normal(1, h, 4, 3, seed=s) for s, h in enumerate((heads[0], heads[1], heads[1])))
    found = grouped_attention(NOTHING, q, k, v, None, scaling=0.6, softcap=softcap, **options)[0]
    close(found, by_definition(q, k, v, spans, 0.6, softcap))


def in_products(q, k, v, scale, softcap=None):
    """Scores rounded to the values' format, everything up to the weights in float32."""
    scores = (q.to(v.dtype) @ k.to(v.dtype).transpose(2, 3)).float() * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~seen_by(*scores.shape[2:]), -torch.inf).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


@pytest.mark.parametrize("length", [5, 384, 385])
def test_short_rows_in_a_reduced_format_are_two_products_and_long_ones_the_fused_kernel(length):
    # queries and keys widened by rotary embeddings, values in bfloat16
    options, _ = plan_of(length)
    q, k = (normal(1, 1, length, 4, dtype=torch.float32, seed=s) for s in (0, 1))
    v = normal(1, 1, length, 4, dtype=torch.bfloat16, seed=2)
    fused = sdpa(q.bfloat16(), k.bfloat16(), v, is_causal=True).transpose(1, 2)
    plain = in_products(q, k, v, 0.5) if length <= 384 else fused
    assert not torch.equal(fused, in_products(q, k, v, 0.5))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            bits(grouped_attention(NOTHING, q, k, v, None, **options)[0], plain)


@pytest.mark.parametrize("enabled", [False, True])
def test_other_formats_keep_theirs(enabled):
    options, _ = plan_of(5)
    q = normal(1, 1, 5, 4, dtype=torch.float32)
    plain = sdpa(*[q] * 3, is_causal=True).transpose(1, 2)
    capped = in_products(q, q, q, 0.5, softcap=2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        bits(grouped_attention(NOTHING, q, q, q, None, **options)[0], plain)
        found = grouped_attention(NOTHING, q, q, q, None, softcap=2.0, **options)[0]
    torch.testing.assert_close(found, capped, rtol=0, atol=1e-6)
    half = q.half()
    bits(
        grouped_attention(NOTHING, half, half, half, None, **options)[0],
        in_products(half, half, half, 0.5),
    )


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_padded_rows_of_a_block_are_masked_each_by_itself(heads):
    spans = spans_of((3, (2, 2)), (4, (2, 2)))  # the second completions: 5 and 6 keys
    options = {ga.PLAN: attention_plan(spans, "cpu")}
    assert any(b.rows == 2 and b.mask is not None for b in options[ga.PLAN].blocks)
    q, k, v = (normal(1, heads, 15, 3, seed=s) for s in range(3))
    found = grouped_attention(NOTHING, q, k, v, None, scaling=0.6, softcap=2.0, **options)[0]
    close(found, by_definition(q, k, v, spans, 0.6, 2.0))


def test_key_heads_for_kernels_that_want_as_many_as_query_heads():
    mask = torch.ones(1, 1)
    taken = [ga._takes_grouped_heads(d, m) for d in ("cpu", "cuda") for m in (None, mask)]
    assert taken == [True, True, True, False]
    x = torch.arange(36).reshape(3, 2, 3, 2)  # rows, heads, length, dim
    repeated = ga._repeat_heads(x, 6)
    assert repeated.shape == (3, 6, 3, 2)
    for head in range(6):
        assert torch.equal(repeated[:, head], x[:, head // 3])


@pytest.mark.parametrize("heads", [(4, 2), (4, 4)])
@pytest.mark.parametrize("takes", [False, True])
def test_heads_are_repeated_only_where_the_kernel_wants_it(takes, heads):
    options, spans = plan_of(9)
    q, k, v = (normal(1, h, 9, 3, seed=s) for s, h in enumerate((heads[0], heads[1], heads[1])))
    seen = []

    def kernel(query, key, value, **given):
        seen.append((query.shape[1], key.shape[1], value.shape[1], given["enable_gqa"]))
        return sdpa(query, key, value, **given)

    def answer(device, mask):
        assert (device, mask) == ("cpu", None)
        return takes

    with (
        mock.patch.object(ga, "scaled_dot_product_attention", kernel),
        mock.patch.object(ga, "_takes_grouped_heads", answer),
    ):
        found = grouped_attention(NOTHING, q, k, v, None, scaling=0.6, **options)[0]
    close(found, by_definition(q, k, v, spans, 0.6))
    fewer = takes and heads == (4, 2)
    assert seen == [(4, 2, 2, True) if fewer else (4, 4, 4, False)]


def test_soft_capped_weights_are_float32_until_they_meet_the_values():
    options, _ = plan_of(5)
    q = normal(1, 1, 5, 4, dtype=torch.bfloat16)
    bits(
        grouped_attention(NOTHING, q, q, q, None, scaling=0.5, softcap=2.0, **options)[0],
        in_products(q, q, q, 0.5, softcap=2.0),
    )


def test_what_the_flat_layout_cannot_do_is_refused():
    options, _ = plan_of(5)
    x = normal(1, 2, 5, 4)
    grouped_attention(NOTHING, x, x, x, None, sliding_window=5, **options)  # just fits
    two = normal(2, 2, 5, 4)
    for tensor, extra, message in (
        (x, {"sliding_window": 4}, "window 4"),
        (two, {}, "one sequence"),
        (x, {"s_aux": 1}, "s_aux"),
        (x, {"position_bias": 1}, "position_bias"),
        (x, {"cache": 1}, "cache"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            grouped_attention(NOTHING, tensor, tensor, tensor, None, **extra, **options)


def test_registering_makes_the_name_known_to_transformers():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    tables = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    kept = [table.pop("alignlab_grouped", None) for table in tables]
    try:
        assert ga.register() == "alignlab_grouped"
        found = [table["alignlab_grouped"] for table in tables]
    finally:
        for table, value in zip(tables, kept, strict=True):
            table["alignlab_grouped"] = value
    assert found == [grouped_attention, sdpa_mask]


# ------------------------------------------------------------------------------------ the plan


def spans_of(*groups: tuple[int, tuple[int, ...]]) -> tuple[GroupSpan, ...]:
    spans, at = [], 0
    for prompt, completions in groups:
        ends = torch.tensor([at, prompt, *completions]).cumsum(0).tolist()[1:]
        pairs = list(itertools.pairwise(ends))
        spans.append(GroupSpan((at, at + prompt), tuple(pairs)))
        at = ends[-1]
    return tuple(spans)


LAYOUTS = [
    spans_of((3, ()), (2, ())),  # padding at the very end: the order stays, the slots do not
    spans_of((2, ()), (3, ())),
    spans_of((2, (1, 3)), (2, (1, 1))),  # padded keys of the last row lie beyond the tokens
    spans_of((2, (1, 1, 1)), (4, (2, 1))),
    spans_of((10, (2, 30)), (1, (1, 2, 3)), (5, ())),
    spans_of((4, (3, 3, 3))),  # one prefix length for the whole block
    spans_of((3, (5, 5)), (5, (3, 3)), (5, (3, 3))),
    spans_of((30, (40,))),
]


@pytest.mark.parametrize("waste", [(0.25, 8192), (0.0, 0), (0.25, 12)])
@pytest.mark.parametrize("spans", LAYOUTS)
def test_any_plan_gives_the_same_attention(spans, waste):
    tokens = max(end for s in spans for _, end in (s.prompt, *s.completions))
    q, k, v = (normal(1, 2, tokens, 3, seed=s) for s in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "WASTE_SHARE", waste[0])
        patch.setattr(planning, "WASTE_PAIRS", waste[1])
        plan = planning._attention_plan.__wrapped__(spans, "cpu", planning.NO_LEAD)
    found = grouped_attention(NOTHING, q, k, v, None, scaling=0.6, **{ga.PLAN: plan})[0]
    close(found, by_definition(q, k, v, spans, 0.6))
    rows = [(s.prompt[1] - s.prompt[0], s.completions) for s in spans]
    assert plan.longest == max(p + max((b - a for a, b in cs), default=0) for p, cs in rows)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("spans", LAYOUTS)
def test_what_leads_is_seen_by_every_row(spans, tokens):
    lead, total = 2, max(end for s in spans for _, end in (s.prompt, *s.completions))
    sees = torch.zeros(total, total, dtype=torch.bool)
    for span in spans:
        for start, end in (span.prompt, *span.completions):
            sees[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
            sees[start:end, span.prompt[0] : span.prompt[1]] |= start > span.prompt[0]
    sees = torch.cat([torch.ones(total, lead, dtype=torch.bool), sees], 1)
    options = {ga.PLAN: attention_plan(spans, "cpu", Lead(lead, tokens))}
    module = torch.nn.Identity()
    module.layer_idx = 1
    if tokens:  # the first of the sequence; each sees itself and what leads before it
        first = torch.ones(lead, lead + total).tril().bool()
        sees = torch.cat([first, sees])
        q, k, v = (normal(1, 2, lead + total, 3, seed=s) for s in range(3))
        keys, values = k, v
    else:  # keys and values of this layer, in a format of their own
        q, k, v = (normal(1, 2, total, 3, seed=s) for s in range(3))
        given = [[normal(1, 2, lead, 3, seed=s + n).float() for n in (0, 1)] for s in (5, 7, 9)]
        options[ga.LEAD] = given
        keys, values = (torch.cat([o, x], 2) for o, x in zip(given[1], (k, v), strict=True))
    scores = (q @ keys.transpose(2, 3) * 0.6).masked_fill(~sees, float("-inf"))
    found = grouped_attention(module, q, k, v, None, scaling=0.6, **options)[0]
    close(found, (scores.softmax(-1) @ values).transpose(1, 2))
    if not tokens:  # a lead in a wider format takes that of the keys
        options[ga.LEAD] = [[own.double() for own in layer] for layer in given]
        narrow = [x.float() for x in (q, k, v)]
        assert grouped_attention(module, *narrow, None, **options)[0].dtype == torch.float32
    rows = [(s.prompt[1] - s.prompt[0], s.completions) for s in spans]
    longest = max(p + max((b - a for a, b in cs), default=0) for p, cs in rows)
    assert options[ga.PLAN].longest == lead + longest


def test_nothing_leads_unless_it_is_said():
    assert Lead() == NO_LEAD == Lead(length=0, tokens=False)
    assert planning._Row((0, 0), (0, 2)).lead == 0


def test_a_plan_without_padding_or_order_to_change_has_no_indices():
    plan = attention_plan(spans_of((30, (40,))), torch.device("cpu"))
    assert plan is attention_plan(spans_of((30, (40,))), "cpu")
    assert plan == planning.AttentionPlan((Block(1, 70, 70, None),), None, None, None, 70)


def test_rows_with_the_same_prefix_share_one_mask():
    plan = attention_plan(spans_of((4, (3, 3, 2, 1))), "cpu")
    _, block = plan.blocks
    assert (block.rows, block.queries, block.keys) == (3, 3, 7)
    assert block.mask.shape == (1, 1, 3, 7)
    assert block.mask[0, 0].tolist() == seen_by(3, 7).tolist()
    _, block = attention_plan(spans_of((4, (3, 3)), (2, (1, 2))), "cpu").blocks
    assert block.mask.shape == (2, 1, 3, 7)


def naive_blocks(rows, share, pairs):
    """(rows, queries, keys) of the blocks by the rule as it is worded, one row after the other."""
    blocks = []
    for own in (True, False):
        kind = [r for r in rows if (r[0] == r[1]) is own]
        members = []
        for row in sorted(kind, key=lambda r: (-r[1], -r[0])):
            wide = [*members, row]
            useful = sum(q * k for q, k in wide)
            padded = len(wide) * max(q for q, _ in wide) * max(k for _, k in wide)
            if members and padded - useful > max(share * useful, pairs):
                blocks.append(members)
                wide = [row]
            members = wide
        blocks += [members] if members else []
    return [(len(b), max(q for q, _ in b), max(k for _, k in b)) for b in blocks]


@pytest.mark.parametrize(("share", "pairs"), [(0.0, 0), (0.25, 0), (0.25, 12), (0.0, 7), (0.1, 60)])
def test_rows_share_a_block_exactly_while_the_rule_says_so(share, pairs):
    random = torch.Generator().manual_seed(7)
    for _ in range(8):
        groups = []
        for _ in range(12):
            prompt, *lengths = torch.randint(1, 7, (4,), generator=random).tolist()
            groups.append((prompt, tuple(lengths)))
        spans = spans_of(*groups)
        rows = [(p + c[0], p + c[0]) for p, c in groups]
        rows += [(own, p + own) for p, c in groups for own in c[1:]]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planning, "WASTE_SHARE", share)
            patch.setattr(planning, "WASTE_PAIRS", pairs)
            plan = planning._attention_plan.__wrapped__(spans, "cpu", planning.NO_LEAD)
        found = [(b.rows, b.queries, b.keys) for b in plan.blocks]
        assert found == naive_blocks(rows, share, pairs)


def test_a_plan_lies_on_the_device_it_was_made_for():
    plan = attention_plan(spans_of((2, (1, 3)), (2, (1, 1))), "meta")
    parts = [plan.query_index, plan.key_index, plan.output_index, plan.blocks[-1].mask]
    assert {x.device.type for x in parts} == {"meta"}


def test_a_plan_of_flexattention_is_one_call():
    q, k, v = normal(1, 4, 3, 8), normal(1, 2, 3, 8, seed=1), normal(1, 2, 3, 8, seed=2)
    plan, given = FlexPlan(mask=None, longest=3), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ga, "flex_attend", lambda *arguments: given.append(arguments) or "attended")
        options = {"scaling": 0.5, "dropout": 0.1, "softcap": 2.0, ga.PLAN: plan}
        assert grouped_attention(NOTHING, q, k, v, None, **options) == ("attended", None)
        lead = [(normal(1, 2, 1, 8, seed=5), normal(1, 2, 1, 8, seed=6))]
        layer = torch.nn.Identity()
        layer.layer_idx = 0
        grouped_attention(layer, q, k, v, None, **{**options, ga.LEAD: lead})
    for (query, key, value, *rest), before in zip(given, (0, 1), strict=True):
        assert query is q
        assert rest == [plan, 0.5, 0.1, 2.0]
        bits(key[:, :, before:], k)
        bits(value[:, :, before:], v)
    bits(given[1][1][:, :, :1], lead[0][0])


def test_predictions_with_and_without_entropies():
    hidden, weight = normal(5, 3).float(), normal(7, 3, seed=1).float()
    head, targets = Head(weight, None), torch.tensor([0, 6, 2, 2, 5])
    [alone] = smoothing.predict(hidden, head, targets, 0.5, False)
    both = smoothing.predict(hidden, head, targets, 0.5, True)
    z = (2 * hidden @ weight.T).log_softmax(-1)  # a temperature of one half
    torch.testing.assert_close(alone, z[range(5), targets])
    torch.testing.assert_close(both[0], z[range(5), targets])
    torch.testing.assert_close(both[1], -(z.exp() * z).sum(-1))
    assert len(both) == 2
    with_mean = smoothing.predict(hidden, head, targets, 1.0, False, True)
    z = (hidden @ weight.T).log_softmax(-1)
    torch.testing.assert_close(with_mean[0], z[range(5), targets])
    torch.testing.assert_close(with_mean[1], z.mean(-1))
