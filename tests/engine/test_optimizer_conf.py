"""Every optimizer yaml composes over a stage's, is typed, and says where its values come from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from alignlab.compose import compose, conf_dir
from alignlab.engine.algorithms import MOMENTUM, NAMES, STATE_BYTES
from alignlab.engine.optimizer import Optimizer
from alignlab.errors import ConfigError
from alignlab.plan import Plan
from alignlab.run import Store

CONF = conf_dir()
CHOICES = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
FIELDS = {field.name for field in fields(Optimizer)}


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_every_optimizer_goes_over_a_stage_s(choice: str, tmp_path: Path) -> None:
    override = f"+optimizer@stages.sft.optimizer={choice}"
    composed = compose(["pipeline=sft", "experiment=smoke", "backbone=tiny", override])
    made = Plan.from_configs([composed], Store(tmp_path))
    [stage] = [node.stage for node in made.nodes.values() if node.kind == "sft"]
    text = (CONF / "optimizer" / f"{choice}.yaml").read_text(encoding="utf-8")
    stated = yaml.safe_load(text)
    built = getattr(stage, "optimizer")  # noqa: B009 (stages in general have none)
    for name, value in stated.items():
        if not isinstance(value, dict):
            found = getattr(built, name)
            assert (list(found) if isinstance(found, tuple) else found) == value
    assert (built.layerwise is not None) == ("layerwise" in stated)
    assert all("#" in line for line in text.splitlines())
    if "name" in stated:
        assert stated["name"] == choice


def test_too_few_steps_to_thaw_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    said = ["pipeline=sft", "experiment=smoke", "backbone=tiny", "adapter=full"]
    said.append("+optimizer@stages.sft.optimizer=ulmfit")
    layers = 2  # of the tiny model; its embeddings are one more group
    for steps, refused in ((layers, True), (layers + 1, False)):
        composed = compose([*said, f"stages.sft.steps={steps}"])
        if refused:
            with pytest.raises(ConfigError, match=r"stages\.sft.*thaw=0\.1.*at least 3 steps"):
                Plan.from_configs([composed], Store(tmp_path))
        else:
            assert Plan.from_configs([composed], Store(tmp_path)).nodes


def test_every_algorithm_has_a_yaml_and_a_size() -> None:
    assert set(CHOICES) == {*NAMES, "ulmfit"}
    assert set(STATE_BYTES) == set(NAMES)
    assert set(MOMENTUM) < set(NAMES)


@pytest.mark.parametrize(
    "path", sorted((CONF / "stage").glob("*.yaml")), ids=lambda path: path.stem
)
def test_stages_state_every_field(path: Path) -> None:
    stated = yaml.safe_load(path.read_text(encoding="utf-8")).get("optimizer")
    if isinstance(stated, dict) and "learning_rate" in stated and len(stated) > 5:
        assert set(stated) == FIELDS
