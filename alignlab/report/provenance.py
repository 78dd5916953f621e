"""Where every number comes from: command, machine, configurations, and every run folder."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignlab.report.analysis import Analysis, Score
from alignlab.report.elements import clean, run_link
from alignlab.report.folders import RunFolder, science
from alignlab.report.mixtures import mixtures
from alignlab.report.table import Study
from alignlab.report.verdict import amount, memory_text, plain, seconds_text, signed

OPEN_RUNS = 40  # more runs than this stay folded away by kind
RECORD_LENGTH = 4000  # characters of a record that the page carries; the folder has the rest
SHOWN_ELSEWHERE = ("inputs", "engine", "tracking", "wandb", "name")


def provenance(analysis: Analysis, folder: Path) -> str:
    """Facts of the study, methods with their runs, configurations, and a table of all runs."""
    study = analysis.study
    configs = _configs(study)
    methods = "".join(_method(analysis, score, configs) for score in analysis.scores)
    return (
        f"{_facts(study)}<h3>Methods and their runs</h3>{methods}"
        f"{mixtures(study)}<h3>Runs</h3>{_runs(study, configs, folder)}"
        f"<h3>Configurations</h3>{_listing(study, configs)}"
    )


def _facts(study: Study) -> str:
    facts = {
        "study": study.name,
        "created": study.created or "not recorded",
        "command": study.command or "not recorded",
        "overrides": " ".join(study.overrides) or "none",
        "jobs": str(len(study.jobs)),
        "seeds": " ".join(map(str, study.seeds)),
    }
    facts |= _environment(list(study.runs.values()))
    listing = "".join(f"<dt>{escape(k)}</dt><dd>{escape(clean(v))}</dd>" for k, v in facts.items())
    return f'<dl class="facts">{listing}</dl>'


def _environment(runs: Sequence[RunFolder]) -> dict[str, str]:
    """One line per fact of env.json; several values when the runs do not agree."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for key in ("git", "python", "packages", "hardware"):
            text = _compact(run.env.get(key))
            if text:
                found.setdefault(key, set()).add(text)
    return {key: " | ".join(sorted(values)[:3]) for key, values in found.items()}


def _compact(value: Any) -> str:
    if isinstance(value, Mapping):
        known = {k: v for k, v in value.items() if v not in (None, [], "")}
        return ", ".join(
            f"memory {memory_text(v)}" if k == "memory_bytes" else f"{k} {_compact(v)}"
            for k, v in known.items()
        )
    if isinstance(value, list):
        return ", ".join(_compact(v) for v in value)
    return "" if value is None else str(value)


def _configs(study: Study) -> dict[str, str]:
    """Run → short hash of its configuration without seed, label and inputs."""
    found = {}
    for run in study.runs.values():
        text = json.dumps([run.kind, science(run.config)], sort_keys=True, default=str)
        found[run.name] = hashlib.sha256(text.encode()).hexdigest()[:8]
    return found


def _method(analysis: Analysis, score: Score, configs: Mapping[str, str]) -> str:
    """One method: its settings, and per seed the run that was scored and the one that trained."""
    method = score.method
    rows = []
    for seed, run in sorted(method.evaluations.items()):
        gold = plain(score.per_seed["gold"].get(seed, math.nan), 3)
        policy = method.policies.get(seed)
        trained = f", policy {run_link(policy.name)}" if policy else ""
        rows.append(
            f'<li data-s="{seed}">seed {seed}: gold <b>{gold}</b> from {run_link(run.name)}'
            f"{trained}</li>"
        )
    seed = method.seeds[0]
    used = [method.evaluations[seed], method.policies.get(seed)]
    links = ", ".join(_config_link(run, configs) for run in used if run is not None)
    over = score.over_sft.get("gold")
    gain = f", {signed(over.value, 3)} over {analysis.base_name}" if over else ""
    note = escape(f"{method.settings}{gain}".lstrip(", "))
    return (
        f'<details id="config-{method.id}" data-m="{method.id}" class="unfold"><summary>'
        f'{escape(clean(method.full_label))} <span class="quiet">{note}</span></summary>'
        f'<ul class="plain">{"".join(rows)}</ul><p>Configurations: {links}</p></details>'
    )


def _config_link(run: RunFolder, configs: Mapping[str, str]) -> str:
    return f'<a href="#cfg-{configs[run.name]}">{escape(run.kind)}</a>'


def _runs(study: Study, configs: Mapping[str, str], folder: Path) -> str:
    """All runs in a table per kind, in the order in which the study needs them."""
    kinds: dict[str, list[RunFolder]] = {}
    for run in study.runs.values():
        kinds.setdefault(run.kind, []).append(run)
    opened = " open" if len(study.runs) <= OPEN_RUNS else ""
    heads = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("Run folder", "Label", "Seed", "State", "Time", "Tokens", "", "Made from")
    )
    tables = []
    for kind, runs in kinds.items():
        rows = "".join(_run_row(run, study, configs, folder) for run in runs)
        tables.append(
            f"<details{opened}><summary>{escape(kind)} "
            f'<span class="quiet">{len(runs)} run{"s" * (len(runs) != 1)}</span></summary>'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(kind)} runs">'
            f'<table class="runs"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
            "</div></details>"
        )
    return "".join(tables)


def _run_row(run: RunFolder, study: Study, configs: Mapping[str, str], folder: Path) -> str:
    link = escape(os.path.relpath(run.path, folder).replace(os.sep, "/"), quote=True)
    known = {role: name for role, name in run.inputs.items() if name in study.runs}
    made = ", ".join(f"{escape(role)} {run_link(name)}" for role, name in known.items())
    tokens = [run.number(key) for key in ("tokens_trained", "tokens_sampled")]
    counted = [t for t in tokens if t is not None]
    cells = (
        run.label,
        str(run.record.get("seed", "—")),
        "done" if run.done else "failed" if run.record.get("error") else "not finished",
        seconds_text(run.number("seconds")),
        amount(sum(counted)) if counted else "—",
    )
    seed = run.record.get("seed")
    owner = f' data-s="{seed}"' if isinstance(seed, int) else ""
    return (
        f'<tr id="run-{escape(run.name, quote=True)}"{owner}>'
        f'<th scope="row"><a href="{link}/">{escape(run.name)}</a></th>'
        + "".join(f"<td>{escape(clean(text))}</td>" for text in cells)
        + f"<td>{_record(run, study, configs, link)}</td><td>{made}</td></tr>"
    )


def _record(run: RunFolder, study: Study, configs: Mapping[str, str], link: str) -> str:
    """Configuration, command and record of a run, folded away; the whole files are linked."""
    record = {k: v for k, v in run.record.items() if k not in SHOWN_ELSEWHERE and v is not None}
    text = json.dumps(record, ensure_ascii=False, default=str)
    shown = text if len(text) <= RECORD_LENGTH else f"{text[:RECORD_LENGTH]} …"
    said = run.env.get("command")
    command = shlex.join(map(str, said)) if isinstance(said, list) else str(said or "")
    how = "" if command in ("", study.command) else f"<code>{escape(clean(command))}</code><br>"
    files = f'<a href="{link}/record.json">record.json</a>'
    return (
        f"<details><summary>record</summary>{_config_link(run, configs)} configuration, {files}"
        f"<br>{how}<pre>{escape(clean(shown))}</pre></details>"
    )


def _listing(study: Study, configs: Mapping[str, str]) -> str:
    """Every distinct configuration once, with the labels of the runs that had it."""
    groups: dict[str, list[RunFolder]] = {}
    for run in study.runs.values():
        groups.setdefault(configs[run.name], []).append(run)
    parts = []
    for key, runs in groups.items():
        labels = list(dict.fromkeys(run.label for run in runs))
        names = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
        body = json.dumps(runs[0].config, indent=1, ensure_ascii=False, default=str)
        parts.append(
            f'<details id="cfg-{key}" class="unfold"><summary>{escape(runs[0].kind)} '
            f'<span class="quiet">{escape(clean(names))}, {len(runs)} '
            f"run{'s' * (len(runs) != 1)}</span></summary>"
            f"<pre>{escape(clean(body))}</pre></details>"
        )
    return "".join(parts)
