"""Which prompts online methods sample from: those kept apart for them, else those of preference."""

from __future__ import annotations

import pytest
from stage_lab import Caught, Chain

from alignlab.spec import build


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "grpo"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_online_methods_sample_from_unlabeled_prompts(
    chain: Chain, caught: Caught, name: str, share: float
) -> None:
    stage, inputs = chain.online(name, data__unlabeled=share)
    chain.lab.run(stage, inputs)
    data = build(stage.data)
    kept = {group.id for group in data.load("unlabeled")}
    allowed = kept or {group.id for group in data.load("preference")}
    assert bool(kept) == (share > 0)
    sampled = {group.id for group in caught.work.experience.groups}
    assert sampled <= allowed
    assert sampled
