"""The command line with a configuration of toys: ``toy_cli.py CONF [alignlab arguments]``."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import toys
import yaml

import alignlab.compose
import alignlab.launch.launcher
from alignlab.cli import main

TOP = """
defaults: [{launch: inprocess}, {pipeline: one}, _self_]
seed: 0
study: null
store: null
report: false
pause: 0.0
"""


def write_conf(folder: Path) -> Path:
    """Write a configuration folder in which every stage is a toy."""
    launch = {"inprocess": {"kind": "inprocess", "jobs": 1}, "local": {"kind": "local", "jobs": 2}}
    paced = {"seed": "${seed}", "steps": 40, "pause": "${pause}"}
    one = {"a": toys.toy(1) | paced, "b": toys.toy(10, left="a") | paced}
    files = {
        "config.yaml": TOP + yaml.safe_dump({"engine": toys.ENGINE, "tracking": toys.TRACKING}),
        **{f"launch/{name}.yaml": yaml.safe_dump(value) for name, value in launch.items()},
        "pipeline/one.yaml": "# @package _global_\n" + yaml.safe_dump({"stages": one}),
    }
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def run(folder: Path, arguments: list[str]) -> int:
    """Call the command line over ``folder``."""
    toys.use_toys(lambda name, value: mock.patch(name, value).start())
    mock.patch.object(alignlab.compose, "conf_dir", return_value=folder).start()
    command = (sys.executable, str(toys.WORKER))
    defaults = {**alignlab.launch.launcher.Local.execute.__kwdefaults__, "command": command}
    alignlab.launch.launcher.Local.execute.__kwdefaults__ = defaults
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
