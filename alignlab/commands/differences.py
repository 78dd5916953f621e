"""What differs between the machine that a study was recorded on and this one, said in lines."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.commands.study_record import describe, environment_state
from alignlab.errors import AlignlabError
from alignlab.plan import build_stage

SAME_BITS = ("sources", "python", "packages", "hardware")  # equal: the same bits are expected

MODEL = 1  # place of the base model in a stage's fingerprint: data, model, template


@dataclass(frozen=True)
class Differences:
    """Lines for a person: what differs, and what stands in the way of running the study here."""

    environment: tuple[str, ...]
    data: tuple[str, ...]  # with other data it would be another study
    code: tuple[str, ...]  # stages whose arithmetic has another version

    @property
    def lines(self) -> list[str]:
        """All of them."""
        return [*self.environment, *self.code, *self.data]


def differences(record: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> Differences:
    """Compare a study's record with this machine.

    ``stages`` are the recorded stages by run with their configuration as it would run here.
    """
    return Differences(
        tuple(state_lines(record["states"].values(), environment_state())),
        tuple(_data_lines(record, stages)),
        tuple(_version_lines(record, stages)),
    )


def state_lines(then: Iterable[Mapping[str, Any]], now: Mapping[str, Any]) -> list[str]:
    """What of code, versions and hardware differs between recorded states and now."""
    then = list(then)
    known = [flat({part: state.get(part) for part in now}) for state in then]
    here = flat(now)
    if not known:
        return []
    lines = []
    for key in sorted({*here, *(k for state in known for k in state)}):
        before = dict.fromkeys(str(state.get(key)) for state in known)
        if not key.startswith(("git", "sources")) and list(before) != [str(here.get(key))]:
            lines.append(f"{key}: {' or '.join(before)} then, {here.get(key)} now")
    if any(state.get("sources") != now.get("sources") for state in then):
        before = dict.fromkeys(map(code_of, then))  # equal modules make the commit irrelevant
        lines.insert(0, f"code: {' or '.join(before)} then, {code_of(now)} now")
    return lines


def code_of(state: Mapping[str, Any]) -> str:
    """Name a state of the code: commit, uncommitted changes, hash of the package's modules."""
    git = state.get("git") or {}
    version = (state.get("packages") or {}).get("alignlab")
    name = f"commit {git['commit'][:9]}, " if git.get("commit") else ""
    name = name or (f"version {version}, " if version else "")
    changed = "with changes, " if git.get("dirty") else ""
    return f"{name}{changed}modules {str(state.get('sources') or 'not recorded')[:12]}"


def same_machine(then: Iterable[Mapping[str, Any]]) -> bool:
    """Whether code, versions and hardware are those of every recorded run."""
    now = environment_state()
    return all(state.get(part) == now.get(part) for state in then for part in SAME_BITS)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mapping → ``{"packages.torch": "2.13.0"}``."""
    if not isinstance(value, Mapping):
        return {path: value}
    parts = ((f"{path}.{k}" if path else str(k), v) for k, v in value.items())
    return {k: v for name, part in parts for k, v in flat(part, name).items()}


def _version_lines(record: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines: dict[str, None] = {}
    for run, stage in record["stages"].items():
        try:
            built = build_stage(stages[run], stage["name"])
        except AlignlabError as error:
            lines[f"{stage['kind']}: cannot be built by this version: {error}"] = None
            continue
        if built.version != stage["version"]:
            lines[
                f"{stage['kind']}: version {stage['version']} of its arithmetic then, "
                f"{built.version} now"
            ] = None
    return list(lines)


def _data_lines(record: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which data set or model a stage would read otherwise here, and what is different in it."""
    users: dict[str, str] = {}
    for run, stage in record["stages"].items():
        users.setdefault(stage["reads"], run)
    lines: dict[str, None] = {}
    for reads, run in users.items():
        then, config = record["reads"][reads], stages[run]
        said = _path_lines(then["paths"], config)
        if not said:
            said = _fingerprint_lines(record["stages"][run], then, config)
        lines |= dict.fromkeys(said)
    return list(lines)


def _path_lines(paths: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, then in paths.items():
        here = _at(config, key)
        path = Path(str(here)).expanduser()
        if not path.exists():
            lines.append(
                f"{key}: {here} is not here. Put it there, or say where it is: "
                f"--data {then['path']}=PATH"
            )
            continue
        before = {file["name"]: file for file in then["files"]}
        now = {file["name"]: file for file in describe(path)}
        if path.is_file() and len(before) == len(now) == 1:  # a moved file may have another name
            before = {path.name: next(iter(before.values())) | {"name": path.name}}
        lines += [f"{key}: {path}: {what}" for what in _file_lines(before, now)]
    return lines


def _file_lines(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for name in sorted({*before, *now}):
        if name not in now:
            lines.append(f"{name} is missing")
        elif name not in before:
            lines.append(f"{name} was not there then")
        elif before[name]["bytes"] != now[name]["bytes"]:
            lines.append(
                f"{name} had {before[name]['bytes']} bytes then and has {now[name]['bytes']} now"
            )
        elif before[name]["sha256"] != now[name]["sha256"]:
            lines.append(f"{name} has the same size and another content")
    return lines


def _fingerprint_lines(
    stage: Mapping[str, Any], then: Mapping[str, Any], config: Mapping[str, Any]
) -> list[str]:
    """Whatever is read from no local path: packages, the hub, servers."""
    try:
        now = build_stage(config, stage["name"]).fingerprint()
    except (AlignlabError, OSError) as error:
        return [f"{stage['name']}: what it reads cannot be read here: {error}"]
    before, after = then["fingerprint"].split(" "), now.split(" ")
    apart = [b != a for b, a in itertools.zip_longest(before, after)]
    if any(len(each["files"]) > 1 for each in then["paths"].values()):
        apart[MODEL] = False  # its folder is named by file times, and was compared file by file
    if not any(apart):
        return []
    return [
        f"{stage['name']}: its data ({_what(config)}) has another fingerprint: "
        f"{then['fingerprint'][:12]} then, {now[:12]} now"
    ]


def _what(config: Mapping[str, Any]) -> str:
    data = config.get("data")
    return str(data.get("_target_")) if isinstance(data, Mapping) else "model"


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[int(part)] if isinstance(config, list) else config.get(part)
    return config
