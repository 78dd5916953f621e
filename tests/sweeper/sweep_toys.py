"""A configuration of toys for sweeps: a shared stage, and one with numbers that depend on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml

from alignlab import spec
from alignlab.compose import conf_dir
from alignlab.engine.distributed import Engine
from alignlab.errors import ConfigError, DivergenceError, Interrupted, TrainingError
from alignlab.run import Run
from alignlab.stages.stage import Role, Stage
from alignlab.typed import Range

REAL = conf_dir()
MADE: list[str] = []  # runs that were executed, in order
STOP: dict[str, int] = {"after": -1}  # executions after which a signal comes


@dataclass(frozen=True, kw_only=True)
class Bowl(Stage):
    """Reports (x − 0.3)² + seed / 100, and x; every way to end is a number away."""

    kind: ClassVar[str] = "bowl"
    roles: ClassVar[Mapping[str, Role]] = {"init": Role(("bowl",), optional=True)}
    x: Annotated[float, Range(max=100)]
    word: str = "plain"

    def validate(self) -> None:
        if self.word == "refused":
            raise ConfigError("word=refused: this word is not allowed.")

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        if len(MADE) == STOP["after"]:
            STOP["after"] = -1
            raise Interrupted("stopped by SIGTERM.", 15)
        MADE.append(run.name)
        if self.word == "diverges" or self.x > 50:
            raise DivergenceError("the loss is not finite.")
        if self.word == "fails":
            raise TrainingError("the bowl is broken.")
        value = float("nan") if self.word == "undefined" else (self.x - 0.3) ** 2 + self.seed / 100
        run.model_dir.mkdir(exist_ok=True)
        (run.model_dir / "x").write_text(str(self.x))
        run.update_record(summary={"loss": value, "x": self.x})


TOP = """
defaults: [{launch: inprocess}, {group: one}, {pipeline: one}, {experiment: null}, _self_]
seed: 0
study: null
store: null
report: false
"""
ENGINE = {"device": "cpu", "progress": False}
TRACKING = {"mode": "disabled", "project": "test", "entity": None}


def write_conf(folder: Path) -> Path:
    """Write a configuration in which every stage is a bowl, with the real sweepers."""
    bowl = {"_target_": "sweep_toys.Bowl", "seed": "${seed}", "word": "plain"}
    stages = {
        "base": {**bowl, "inputs": {}, "x": 1.0},
        "bowl": {**bowl, "inputs": {"init": "base"}, "x": "${group.x}"},
    }
    real = yaml.safe_load((REAL / "engine/auto.yaml").read_text())
    files = {
        "config.yaml": TOP + yaml.safe_dump({"engine": {**real, **ENGINE}, "tracking": TRACKING}),
        "launch/inprocess.yaml": "kind: inprocess\njobs: 1\n",
        "group/one.yaml": "x: 1.0\n",
        "group/two.yaml": "x: 2.0\n",
        "pipeline/one.yaml": "# @package _global_\n" + yaml.safe_dump({"stages": stages}),
        "experiment/tuned.yaml": "# @package _global_\ndefaults:\n"
        "  - override /hydra/sweeper: optuna\nhydra:\n  sweeper:\n    objective: bowl/loss\n"
        "    direction: minimize\n    n_trials: 3\n    params:\n"
        "      stages.bowl.x: interval(0,1)\n",
    }
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    shutil.copytree(REAL / "hydra", folder / "hydra")
    return folder


def locate(target: Any, path: str) -> Any:
    """Find bowls as well as what is in the package."""
    return Bowl if target == "sweep_toys.Bowl" else spec.locate(target, path)
