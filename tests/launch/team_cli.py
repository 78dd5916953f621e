"""The command line over teams and toys: ``team_cli.py CONF [alignlab arguments]``."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import teams
import toys
import yaml

import alignlab.compose
from alignlab import plan
from alignlab.cli import main

TOP = "defaults: [{launch: inprocess}, {pipeline: one}, _self_]\nseed: 0\nstudy: s\nstore: null\n"


def write_conf(folder: Path) -> Path:
    """Write a study with stages for one process and for several, one of which diverges."""
    stages = {
        "a": toys.toy(7),
        "b": teams.team(10, left="a"),
        "c": teams.team(1, left="b", ends={"0": "divergence", "1": "divergence"}),
        "d": teams.team(100, left="b"),
        "e": teams.team(2, left="c"),
    }
    config = {"engine": toys.ENGINE, "tracking": toys.TRACKING, "report": False}
    files = {
        "config.yaml": TOP + yaml.safe_dump(config),
        "launch/inprocess.yaml": yaml.safe_dump({"kind": "inprocess", "jobs": 1}),
        "pipeline/one.yaml": "# @package _global_\n" + yaml.safe_dump({"stages": stages}),
    }
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


if __name__ == "__main__":
    plan.locate = teams.locate
    mock.patch.object(alignlab.compose, "conf_dir", return_value=Path(sys.argv[1])).start()
    sys.exit(main(sys.argv[2:]))
