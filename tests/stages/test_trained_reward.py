"""A reward run as a reward for texts gives the scores that the run's own model gives to tokens."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from alignlab import typed
from alignlab.errors import ConfigError
from alignlab.rewards.trained import TrainedReward
from alignlab.run import Store
from alignlab.stages.annotate import FILE, read
from alignlab.stages.reward import scores_of
from alignlab.stages.session import open_backbone


def trained(run, **changes):
    values = {"store": None, "max_prompt": None, "max_completion": None, "token_budget": 64}
    return TrainedReward(run=run, **{**values, **changes})


@pytest.fixture
def copied(chain, tmp_path, monkeypatch):
    """The chain's reward run in a store of its own, with the configuration as written."""
    store = Store(tmp_path / "runs")
    run = store.run(chain.reward.kind, chain.reward.key)
    shutil.copytree(chain.reward.path, run.path)
    config = typed.to_mapping(chain.lab.stage("reward"))
    (run.path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setenv("ALIGNLAB_RUNS", str(store.root))
    return run


def test_scores_are_those_of_the_run(chain, copied):
    tokens = read(chain.annotations, "train")
    lines = (chain.annotations.path / FILE).read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if (row := json.loads(line))["split"] == "train"]
    backbone = open_backbone(
        chain.lab.stage("reward").backbone, chain.lab.new_run("evaluate"), chain.lab.engine, 0
    )
    backbone.add("reward", source=chain.reward.model_dir, trainable=False, head=True)
    wanted = scores_of(backbone, "reward", tokens, chain.lab.engine).numpy()
    prompts = [row["prompt"] for row in rows for _ in row["completions"]]
    completions = [text for row in rows for text in row["completions"]]
    stage = chain.lab.stage("annotate")
    limits = {"max_prompt": stage.max_prompt, "max_completion": stage.max_completion}
    reward = trained(copied.name, **limits)
    got = reward.score(prompts, completions, [{}] * len(prompts))
    assert got.dtype == np.float32
    assert got == pytest.approx(wanted, abs=1e-4)
    assert np.ptp(wanted) > 0.1  # they are no constant
    assert reward.score([], [], []).shape == (0,)
    assert reward.fingerprint() != trained(copied.name).fingerprint()


def test_a_run_that_is_not_there_or_not_done_is_refused(copied):
    with pytest.raises(ConfigError, match="No reward run 'reward-xyz'"):
        trained("reward-xyz").fingerprint()
    (copied.path / "DONE").unlink()
    with pytest.raises(ConfigError, match="is not finished"):
        trained(copied.name).fingerprint()
