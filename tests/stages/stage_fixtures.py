"""Fixtures of everything that runs stages: chains of finished runs, and what the loop was given."""

from __future__ import annotations

from typing import Any

import pytest
from stage_lab import Caught, Chain, Lab

from alignlab.run import Run


def make_chain(lab: Lab) -> Chain:
    sft = lab.run(lab.stage("sft", steps=10), {})  # so that about half of its samples end
    annotations = lab.run(lab.stage("annotate", validation_share=0.2), {"policy": sft})
    reward = lab.run(lab.stage("reward"), {"init": sft, "annotations": annotations})
    return Chain(lab, sft, annotations, reward)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """SFT, annotations and a reward model, every parameter trained."""
    return make_chain(Lab.make(tmp_path_factory.mktemp("full")))


@pytest.fixture(scope="session")
def earlier(chain: Chain) -> Run:
    """An SFT run that is not the policy's start: with it as reference, the KL is not zero."""
    return chain.lab.run(chain.lab.stage("sft", steps=4), {})


@pytest.fixture(scope="session")
def lora_chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The same with low-rank adapters."""
    overrides = ["adapter=lora", "adapter.rank=4", "reward@gold=matches", "gold.pattern=a"]
    lab = Lab.make(tmp_path_factory.mktemp("lora"), *overrides)
    return make_chain(lab)


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    """Keeps the work and the backbone of the last training, for a look after it has ended."""
    import alignlab.engine.loop as loop

    train, kept = loop.train, Caught()

    def keeping(work: Any, backbone: Any, *args: Any, **named: Any) -> Any:
        kept.work, kept.backbone = work, backbone
        return train(work, backbone, *args, **named)

    monkeypatch.setattr(loop, "train", keeping)
    return kept
