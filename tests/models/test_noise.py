"""NEFTune's noise: its size by hand, whose it is, where it acts, and that nothing else moves it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from model_cases import make_batch

from alignlab.models.noise import EmbeddingNoise, disturbed, noise_of

CPU = torch.device("cpu")
SIZES = ((3, (2, 6)), (4, (1,)), (2, ()))


class Embedded(torch.nn.Module):
    """A model whose embeddings are all there is of it."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(97, 8)

    def get_input_embeddings(self):
        return self.table


def test_lengths_by_hand():
    # group 0: a shared prompt of 3, completions of 2 and 6: the prompt's L is 3 + 6, theirs are
    # 5 and 9; group 1: 4 + 1; group 2: a prompt alone
    lengths = EmbeddingNoise(1.0, (0, 0, 0)).lengths(make_batch(SIZES).spans)
    assert lengths.tolist() == [9] * 3 + [5] * 2 + [9] * 6 + [5] * 5 + [2] * 2


def test_the_size_of_the_noise_by_hand():
    # α = 5 and d = 4096: ±5/√(L·4096); 45,056 draws come within 0.1 % of the bound, and the
    # variance of U(−b, b) is b²/3 (relative error of 4,096·L draws: √(0.8/n), 0.9 % at n = 8,192)
    spans = make_batch(SIZES).spans
    noise = EmbeddingNoise(5.0, (7, 8, 9)).draw(spans, 4096, CPU)
    assert noise.shape == (18, 4096)
    assert noise.dtype == torch.float32
    for first, end, length in ((0, 3, 9), (3, 5, 5), (11, 16, 5), (16, 18, 2)):
        bound = 5 / math.sqrt(length * 4096)
        part = noise[first:end].double()
        assert 0.999 * bound < part.abs().max() <= bound
        assert float(part.square().mean()) == pytest.approx(bound**2 / 3, rel=0.04)
        assert abs(float(part.mean())) < 0.05 * bound


def test_a_row_draws_the_same_wherever_it_lies():
    whole = make_batch(SIZES).spans
    noise = EmbeddingNoise(2.0, (11, 12, 13)).draw(whole, 6, CPU)
    first = EmbeddingNoise(2.0, (11,)).draw(make_batch(SIZES[:1]).spans, 6, CPU)
    turned = EmbeddingNoise(2.0, (12, 11)).draw(make_batch((SIZES[1], SIZES[0])).spans, 6, CPU)
    assert torch.equal(noise[:11], first)
    assert torch.equal(turned, torch.cat([noise[11:16], noise[:11]]))
    assert not torch.equal(EmbeddingNoise(2.0, (12,)).draw(whole[:1], 6, CPU), first)
    with pytest.raises(ValueError, match="zip"):
        EmbeddingNoise(2.0, (11,)).draw(whole, 6, CPU)


def test_seeds_are_a_function_of_seed_step_and_row():
    made = noise_of(5.0, 3, 10, [4, 0, 4])
    assert made is not None
    assert made.alpha == 5.0
    assert made.seeds[0] == made.seeds[2] != made.seeds[1]
    assert made == noise_of(5.0, 3, 10, [4, 0, 4])
    seeds = {noise_of(5.0, *key, [0]).seeds for key in ((3, 10), (4, 10), (3, 11), (10, 3))}
    assert len(seeds) == 4
    # the two words of numpy's sequence as one number of 64 bits
    high, low = np.random.SeedSequence([3, 10, 4]).generate_state(2).tolist()
    assert made.seeds[0] == high * 2**32 + low
    assert noise_of(None, 3, 10, [4]) is None


def test_the_embeddings_are_disturbed_inside_and_as_they_were_outside():
    model, ids = Embedded(), torch.tensor([[1, 2, 3, 4]])
    plain = model.table(ids)
    noise = torch.randn(3, 8)
    asked = []

    def draw(width, device):
        asked.append((width, device))
        return noise

    with disturbed(model, draw):
        out = model.table(ids)
    assert asked == [(8, CPU)]
    assert torch.equal(out[0, 0], plain[0, 0])  # a virtual token ahead of three real ones
    torch.testing.assert_close(out[0, 1:], plain[0, 1:] + noise)
    assert torch.equal(model.table(ids), plain)
    with pytest.raises(RuntimeError, match="on purpose"), disturbed(model, draw):
        raise RuntimeError("on purpose")
    assert torch.equal(model.table(ids), plain)


def test_rows_of_a_padded_pass_and_another_number_format():
    model, ids = Embedded().to(torch.bfloat16), torch.tensor([[1, 2], [3, 4]])
    noise = torch.randn(2, 2, 8)
    with disturbed(model, lambda width, device: noise):
        out = model.table(ids)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, model.table(ids) + noise.bfloat16())
