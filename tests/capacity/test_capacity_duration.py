"""Seconds and money, against arithmetic by hand; and schedules."""

from __future__ import annotations

import doctest
from dataclasses import replace

import pytest
from capacity_cases import DEVICE, full, lora, sampling, update, work

from alignlab.capacity import activations, schedule
from alignlab.capacity.duration import duration
from alignlab.capacity.memory import Setting
from alignlab.capacity.schedule import critical_path, makespan


def test_training_is_arithmetic_at_a_share_of_the_peak() -> None:
    # 10 steps of 64 tokens, 6 FLOPs for each of 2,000 weights; 1e12 · 0.5 FLOP/s.
    found = duration(work(), Setting(32), DEVICE)
    assert found.training == pytest.approx(640 * 6 * 2000 / 5e11)
    assert found.seconds == found.training
    # Adapters: 4 · 2,544 + 2 · 544; checkpointing computes the forward pass again, 2 · 2,544 more.
    found = duration(work(lora()), Setting(32), DEVICE)
    assert found.training == pytest.approx(640 * (4 * 2544 + 2 * 544) / 5e11)
    found = duration(work(lora(checkpointing=True)), Setting(32), DEVICE)
    assert found.training == pytest.approx(640 * (6 * 2544 + 2 * 544) / 5e11)
    # float32 has half the peak, two processes share the work.
    found = duration(work(full(dtype="float32")), Setting(32, processes=2), DEVICE)
    assert found.training == pytest.approx(640 * 6 * 2000 / 2.5e11 / 2)


def test_sampling_reads_all_weights_for_every_token() -> None:
    # 4 of 6 rows side by side, 30 tokens: 6/4 · 30 steps of 5,696 bytes of weights and
    # 4 · (10 + 15) · 2·4 · 2 · 2 bytes of keys and values, at 1e9 bytes a second.
    found = duration(work(update=None, decode=sampling()), Setting(32), DEVICE)
    step = (5696 + 4 * 25 * 2 * 4 * 2 * 2) / 1e9
    prompts = 2 * 2000 * 6 * 10 / 5e11
    assert found.sampling == pytest.approx(45 * step + prompts)
    # where kernels take longer to launch than memory to be read, they decide: 2 blocks of 1 ms
    slow = replace(DEVICE, layer_microseconds=1000.0)
    found = duration(work(update=None, decode=sampling(times=3)), Setting(32), slow)
    assert found.sampling == pytest.approx(3 * (45 * 0.002 + prompts))


def test_gradients_travel_once_a_step_and_shares_of_weights_in_every_pass() -> None:
    node = replace(DEVICE, count=4)
    # Sums over 4 processes: 2 · 8,000 bytes, 3/4 of them from elsewhere, 10 steps, 1e9 bytes/s.
    found = duration(work(), Setting(32, processes=4), node)
    assert found.exchange == pytest.approx(10 * 16000 * 0.75 / 1e9)
    # ZeRO 3: 16 tokens a process are one micro-batch: weights gathered twice, gradients reduced.
    found = duration(work(), Setting(32, processes=4, zero=3), node)
    assert found.exchange == pytest.approx(10 * (8000 + 2 * 8000) * 0.75 / 1e9)
    # Eight processes are two nodes: a tenth of the speed.
    found = duration(work(), Setting(32, processes=8), replace(node, nodes=2))
    assert found.exchange == pytest.approx(10 * 16000 * 7 / 8 / 1e8)
    # Waiting in main memory: gradients down, weights up.
    found = duration(work(), Setting(32, offload="optimizer", zero=1), DEVICE)
    assert found.exchange == pytest.approx(10 * 16000 / 1e9)


def test_more_tokens_and_more_scoring_take_longer() -> None:
    base = duration(work(), Setting(32), DEVICE).seconds
    assert duration(work(update=update(steps=20)), Setting(32), DEVICE).seconds > base
    scored = duration(work(scored=1000), Setting(32), DEVICE)
    assert scored.scoring == pytest.approx(2 * 2000 * 1000 / 5e11)


def test_schedules_by_hand() -> None:
    #   a 2 ── b 3 ── d 1        e 4 by itself
    #     └─── c 5 ──┘
    seconds = {"a": 2.0, "b": 3.0, "c": 5.0, "d": 1.0, "e": 4.0}
    parents = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ()}
    assert critical_path(seconds, parents) == 8.0
    assert makespan(seconds, parents, 1) == 15.0
    # Two at a time: a, e until 2 and 4; b 2–5; c 4–9; d 9–10.
    assert makespan(seconds, parents, 2) == 10.0
    assert makespan(seconds, parents, 5) == 8.0
    assert makespan({}, {}, 1) == 0.0


@pytest.mark.parametrize("module", [activations, schedule])
def test_examples_in_the_documentation(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
