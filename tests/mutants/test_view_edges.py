"""A view against one row at a time through the plain model: where everything is read from."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from model_cases import architecture, make_batch, random_model
from transformers import BertConfig, BertModel

from alignlab.data.group import NONE, TokenGroup
from alignlab.data.pack import flatten
from alignlab.models.attention_plan import Lead
from alignlab.models.heads import ScalarHead
from alignlab.models.kept_prompts import KeptPrompts, states_behind
from alignlab.models.noise import EmbeddingNoise
from alignlab.models.view import View, autocast

SIZES = ((3, (2, 1)), (1, (3,)), (2, (4, 2)))
BATCH = make_batch(SIZES)


@cache
def llama():
    config = architecture(
        "llama",
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return random_model(config).requires_grad_(False)


def view(*, head=True, layout="grouped", dtype=torch.float32, model=None):
    torch.manual_seed(1)
    scalar = ScalarHead(8) if head else None
    return View("reward", model or llama(), scalar, layout=layout, dtype=dtype)


def test_an_engine_runs_the_pass_and_its_head():
    ran, asked = [], []

    def run(compute):
        ran.append(compute)
        return compute()

    def predictor(hidden, target_ids, temperature, entropy, mean):
        asked.append((hidden.shape, target_ids, temperature, entropy, mean))
        return (hidden.sum(-1), hidden[:, 0])[: 1 + (entropy or mean)]

    engine = SimpleNamespace(run=run, predictors={"reward": predictor, "other": None})
    mine = View("reward", llama(), None, "grouped", torch.float32, engine)
    found = mine.logps(BATCH, temperature=0.6)
    both = mine.logps_entropy(BATCH, temperature=0.7)
    smooth = mine.logps_mean(BATCH)
    hidden = view().features(BATCH).at_targets
    close(found, hidden.sum(-1))
    close(both[0], hidden.sum(-1))
    close(both[1], hidden[:, 0])
    close(smooth[0], hidden.sum(-1))
    close(smooth[1], hidden[:, 0])
    assert len(ran) == 3  # the passes, and nothing else
    assert [a[2:] for a in asked] == [(0.6, False, False), (0.7, True, False), (1.0, False, True)]
    assert all(a[0] == hidden.shape and a[1] is BATCH.target_ids for a in asked)
    without = SimpleNamespace(run=run, predictors={})  # weights that are always whole
    close(View("reward", llama(), None, "grouped", torch.float32, without).logps(BATCH), plain()[0])
    assert len(ran) == 4


def test_the_mean_of_the_vocabulary_and_noise_on_the_embeddings():
    logps, mean = view().logps_mean(BATCH)
    expected = [logits.log_softmax(-1)[prompt - 1 : -1] for _, logits, _, prompt in rows()]
    close(logps, plain()[0])
    close(mean, torch.cat(expected).mean(-1))
    noise = EmbeddingNoise(3.0, (1, 2, 3))
    disturbed = view().logps(BATCH, noise=noise)
    assert (disturbed - logps).abs().max() > 1e-3
    close(view().logps_mean(BATCH, noise=noise)[0], disturbed)
    close(view(layout="padded").logps(BATCH, noise=noise), disturbed)
    close(view().logps(BATCH), logps)  # it is gone again


def rows():
    """(hidden states, logits, targets, prompt length) of every completion behind its prompt."""
    for span in BATCH.spans:
        for start, end in span.completions:
            index = [*range(*span.prompt), *range(start, end)]
            ids = BATCH.input_ids[index][None]
            out = llama()(ids, output_hidden_states=True)
            length = span.prompt[1] - span.prompt[0]
            yield out.hidden_states[-1][0], out.logits[0], ids[0, length:], length


def plain(temperature=1.0):
    """Log-probs, entropies, values at the predictors and scores at the ends."""
    head = view().scalar_head
    logps, entropies, values, scores = [], [], [], []
    for hidden, logits, targets, prompt in rows():
        z = (logits[prompt - 1 : -1] / temperature).log_softmax(-1)
        logps.append(z.gather(1, targets[:, None])[:, 0])
        entropies.append(-(z.exp() * z).sum(-1))
        values.append(head(hidden[prompt - 1 : -1]))
        scores.append(head(hidden[-1:]))
    return tuple(map(torch.cat, (logps, entropies, values, scores)))


def close(found, wanted, atol=1e-5):
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


def behind():
    """The prompts of `BATCH`, with the completions of their neighbours."""
    prompts = [BATCH.input_ids[slice(*span.prompt)].numpy() for span in BATCH.spans]
    parts = [[BATCH.input_ids[slice(*c)].numpy() for c in s.completions] for s in BATCH.spans]
    groups = zip(prompts, [*parts[1:], parts[0]], strict=True)
    return flatten([TokenGroup(p, tuple(c), NONE, row=0, id="") for p, c in groups])


def test_completions_behind_the_prompts_that_a_pass_kept():
    mine, other, kept = view(), behind(), KeptPrompts()
    close(mine.logps(BATCH, keep=kept), mine.logps(BATCH), atol=0)
    assert (kept.spans, kept.tokens) == (BATCH.spans, BATCH.tokens)
    nothing = KeptPrompts()
    nothing.take(torch.ones(BATCH.tokens, 8))
    assert (nothing.states, nothing.spans, nothing.tokens) == (None, (), 0)
    kept.take(torch.ones(BATCH.tokens, 8, requires_grad=True))
    assert not kept.states.requires_grad
    assert torch.equal(kept.states, torch.ones(3, 8))
    mine.logps(BATCH, keep=kept)
    states, index = states_behind(llama(), other, kept)
    tokens = sum(end - start for span in other.spans for start, end in span.completions)
    assert states.shape == (len(other.spans) + tokens, 8)
    close(states.index_select(0, index), mine.features(other).at_targets)
    close(mine.logps_behind(other, kept), mine.logps(other))
    engine = SimpleNamespace(run=lambda compute: compute() + 1, predictors={})
    through = View("reward", llama(), None, "grouped", torch.float32, engine)
    close(through.logps_behind(other, kept), mine.logps(other) + 1)
    # All of it passes where nothing was kept, or the layout is another.
    shapes = []
    for of, where in ((mine, kept), (mine, KeptPrompts()), (view(layout="padded"), kept)):
        with mock.patch.object(llama().model, "forward", wraps=llama().model.forward) as passes:
            close(of.logps_behind(other, where), mine.logps(other))
            shapes.append(tuple(passes.call_args_list[0].kwargs["input_ids"].shape))
    assert shapes == [(1, tokens), (1, other.tokens), (len(other.lengths), 6)]


def test_only_flat_passes_over_text_alone_keep_prompts():
    ways = {
        "padded": lambda kept: view(layout="padded").logps(BATCH, keep=kept),
        "noise": lambda kept: view().logps(BATCH, keep=kept, noise=EmbeddingNoise(3.0, (1, 2, 3))),
    }
    for name, way in ways.items():
        kept = KeptPrompts()
        way(kept)
        assert (kept.states, kept.keys_values) == (None, {}), name
    rope = {"rope_type": "default", "rope_theta": 1e4}
    for kind, keeps in (("dynamic", False), ("longrope", False), ("yarn", True), (None, True)):
        kept = KeptPrompts()
        with mock.patch.object(llama().config, "rope_parameters", {**rope, "rope_type": kind}):
            assert bool(kept.arguments(llama(), BATCH)) is keeps
        nested = {"full_attention": {**rope, "rope_type": kind}, "sliding_attention": rope}
        with mock.patch.object(llama().config, "rope_parameters", nested):
            assert bool(kept.arguments(llama(), BATCH)) is keeps
        nested = dict(reversed(nested.items()))
        with mock.patch.object(llama().config, "rope_parameters", nested):
            assert bool(kept.arguments(llama(), BATCH)) is keeps
    decoder = SimpleNamespace(rope_parameters={**rope, "rope_type": "dynamic"})
    found = lambda _, decoder=False: texts[decoder]  # noqa: E731
    texts = {True: decoder, False: llama().config}
    with mock.patch.object(type(llama().config), "get_text_config", found):
        assert KeptPrompts().arguments(llama(), BATCH) == {}
    with mock.patch.object(llama().config, "rope_parameters", None):
        assert KeptPrompts().arguments(llama(), BATCH)
    assert KeptPrompts().arguments(llama(), replace(BATCH, images=("cat",))) == {}
    for training in (True, False):
        for again in (True, False):
            asked = SimpleNamespace(
                config=llama().config, training=training, is_gradient_checkpointing=again
            )
            assert bool(KeptPrompts().arguments(asked, BATCH)) is not (training and again)
    with mock.patch("alignlab.models.kept_prompts.lead_of", return_value=Lead(2)):
        assert KeptPrompts().arguments(llama(), BATCH) == {}


def test_behind_kept_prompts_stand_the_same_prompts():
    kept = KeptPrompts()
    with pytest.raises(ValueError, match="No prompts were kept"):
        states_behind(llama(), BATCH, kept)
    view().logps(BATCH, keep=kept)
    other = make_batch(((3, (2,)), (2, (3,)), (2, (4,))))
    with pytest.raises(ValueError, match=r"\[3, 2, 2\] tokens behind kept ones of \[3, 1, 2\]"):
        states_behind(llama(), other, kept)


def test_a_pass_behind_kept_prompts_remembers_no_cast_and_has_no_gradient():
    mine, kept, seen = view(dtype=torch.bfloat16), KeptPrompts(), []
    mine.logps(BATCH, keep=kept)
    real = llama().model.forward

    def watched(*args, **named):
        cached = torch.is_autocast_cache_enabled()
        seen.append((torch.is_autocast_enabled("cpu"), cached, torch.is_grad_enabled()))
        return real(*args, **named)

    with mock.patch.object(llama().model, "forward", watched):
        found = mine.logps_behind(behind(), kept)
    assert seen == [(True, False, False)]
    assert found.dtype == torch.float32
    assert 1e-5 < (found - view().logps(behind())).abs().max() < 0.3


@pytest.mark.parametrize("layout", ["grouped", "padded"])
@pytest.mark.parametrize("temperature", [None, 0.6])
def test_every_reading_of_a_view(temperature, layout):
    mine = view(layout=layout)
    options = {} if temperature is None else {"temperature": temperature}
    logps, entropies, values, scores = plain(temperature or 1.0)
    close(mine.logps(BATCH, **options), logps)
    found, entropy = mine.logps_entropy(BATCH, **options)
    close(found, logps)
    close(entropy, entropies)
    close(mine.values(BATCH), values)
    close(mine.scores(BATCH), scores)
    features = mine.features(BATCH)
    close(mine.scalar_head(features.at_targets), values)
    close(mine.scalar_head(features.at_ends), scores)
    assert (mine.name, mine.model) == ("reward", llama())


def test_rows_beyond_the_window_take_the_padded_layout():
    mine = view()
    longest = 2 + 4
    config = mine.model.config
    for window, layout in ((None, "grouped"), (longest, "grouped"), (longest - 1, "padded")):
        config.sliding_window = window
        try:
            assert mine._layout_of(BATCH) == layout
            assert view(layout="padded")._layout_of(BATCH) == "padded"
        finally:
            config.sliding_window = None


def test_the_window_is_that_of_the_part_that_decodes():
    mine = view()

    def part(_, decoder=False):
        return SimpleNamespace(sliding_window=2 + 4 - 1 if decoder else None)

    with mock.patch.object(type(mine.model.config), "get_text_config", part):
        assert mine._layout_of(BATCH) == "padded"


def test_an_encoder_scores_the_first_state_of_every_row_and_predicts_nothing():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 512, "type_vocab_size": 1}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)
    torch.manual_seed(0)
    model = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)
    mine = view(model=model, layout="padded")
    ids = BATCH.input_ids
    rows = [
        torch.cat([ids[slice(*span.prompt)], ids[slice(*completion)]])
        for span in BATCH.spans
        for completion in span.completions
    ]
    states = torch.stack([model(row[None])[0][0, 0] for row in rows])
    close(mine.scores(BATCH), mine.scalar_head(states))
    with pytest.raises(ValueError, match="An encoder scores whole rows"):
        mine.values(BATCH)


def test_a_view_without_a_head_has_no_scores():
    with pytest.raises(ValueError, match="'reward' has no scalar head"):
        view(head=False).scores(BATCH)


def test_every_pass_runs_in_the_view_s_format_and_answers_in_float32():
    mine = view(dtype=torch.bfloat16)
    exact = plain()
    entropy = mine.logps_entropy(BATCH)[1]
    for found, wanted in zip(
        (mine.logps(BATCH), entropy, mine.values(BATCH), mine.scores(BATCH)), exact, strict=True
    ):
        assert found.dtype == torch.float32
        assert 1e-5 < (found - wanted).abs().max() < 0.3
    # the head too: on the same hidden states its bfloat16 weights give another answer
    hidden = mine.features(BATCH).at_targets
    outside = mine.lm_head.logits(hidden.float()).log_softmax(-1)
    wanted = outside.gather(1, BATCH.target_ids[:, None])[:, 0]
    assert (mine.logps(BATCH) - wanted).abs().max() > 1e-5
    close(mine.logps_entropy(BATCH)[0], mine.logps(BATCH), atol=0)


def test_only_passes_without_gradients_remember_casts():
    mine = view(dtype=torch.bfloat16)
    remembered = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), mine._arithmetic():
            remembered.append(torch.is_autocast_cache_enabled())
            assert torch.is_autocast_enabled("cpu")
    assert remembered == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_autocast_is_off_for_float32(dtype):
    with autocast(torch.device("cpu"), dtype):
        assert torch.is_autocast_enabled("cpu") is (dtype != torch.float32)
        assert torch.is_autocast_cache_enabled()
        if dtype != torch.float32:
            assert torch.get_autocast_dtype("cpu") == dtype
    with autocast("cpu", dtype, remember=False):
        assert not torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("layout", ["grouped", "padded"])
def test_the_layout_reaches_the_pass(layout):
    from alignlab.models import view as module

    asked, real = [], module.hidden_states

    def watched(model, batch, chosen, *others):
        asked.append(chosen)
        return real(model, batch, chosen, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "hidden_states", watched)
        view(layout=layout).scores(BATCH)
    assert asked == [layout]
