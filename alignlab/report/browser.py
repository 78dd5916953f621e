"""Samples side by side per prompt, and the provenance of every number, as HTML."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from alignlab.report.analysis import Analysis, Score
from alignlab.report.folders import RunFolder, number, prompt_key
from alignlab.report.style import Look, swatch
from alignlab.report.verdict import memory_text, plain, seconds_text, signed

SHOWN_PROMPTS = 30


def chosen_prompts(analysis: Analysis, count: int = SHOWN_PROMPTS) -> list[str]:
    """Prompts to show: those with the smallest hash of their id, so that nobody picked them."""
    keys = {prompt_key(r) for s in analysis.scores for rows in s.method.rows.values() for r in rows}
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:count]


def samples(analysis: Analysis, looks: Mapping[str, Look]) -> str:
    """First completions of all methods per prompt and seed; a script shows one at a time."""
    rows: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for score in analysis.scores:
        for seed, found in score.method.rows.items():
            for row in found:
                rows.setdefault((prompt_key(row), seed), {}).setdefault(score.method.id, row)
    prompts = chosen_prompts(analysis)
    articles, options = [], []
    for index, key in enumerate(prompts):
        texts = [
            str(r.get("prompt", "")) for (k, _), by in rows.items() if k == key for r in by.values()
        ]
        shown = texts[0] if texts else key
        options.append(f'<option value="{index}">{index + 1}. {escape(_clip(shown))}</option>')
        articles += [
            _article(analysis, looks, index, seed, shown, rows[key, seed])
            for seed in analysis.seeds
            if (key, seed) in rows
        ]
    seeds = "".join(f'<option value="{s}">seed {s}</option>' for s in analysis.seeds)
    hidden = " hidden" if len(analysis.seeds) == 1 else ""
    return (
        '<div class="browser" id="browser"><div class="controls">'
        '<button type="button" data-step="-1" aria-label="Previous prompt">‹</button>'
        '<label><span class="sr">Prompt</span>'
        f'<select id="prompt">{"".join(options)}</select></label>'
        f'<label{hidden}><span class="sr">Training seed</span>'
        f'<select id="seed">{seeds}</select></label>'
        '<button type="button" data-step="1" aria-label="Next prompt">›</button>'
        f'<span id="where" class="quiet" aria-live="polite">1 of {len(prompts)}</span></div>'
        f"{''.join(articles)}</div>"
    )


def _clip(text: str, length: int = 70) -> str:
    one = " ".join(text.split())
    return one if len(one) <= length else f"{one[: length - 1]}…"


def _article(
    analysis: Analysis,
    looks: Mapping[str, Look],
    index: int,
    seed: int,
    prompt: str,
    rows: Mapping[str, Mapping[str, Any]],
) -> str:
    first = index == 0 and seed == analysis.seeds[0]
    cards = "".join(
        _card(score, looks[score.method.id], rows[score.method.id])
        for score in analysis.scores
        if score.method.id in rows
    )
    return (
        f'<article data-prompt="{index}" data-seed="{seed}"{"" if first else " hidden"}>'
        f'<p class="prompt">{escape(prompt)} <span class="quiet">…</span></p>'
        f'<div class="cards">{cards}</div></article>'
    )


def _card(score: Score, look: Look, row: Mapping[str, Any]) -> str:
    numbers = [
        f"<span>{name} <b>{escape(plain(number(row.get(key)), places))}</b></span>"
        for key, name, places in (
            ("gold", "gold", 2), ("audit", "audit", 2), ("proxy", "proxy", 2), ("kl", "KL", 1),
            ("tokens", "tokens", 0),
        )
        if row.get(key) is not None
    ]  # fmt: skip
    cut = "" if row.get("finished", True) else '<span class="cut">cut off</span>'
    return (
        f'<section class="card" data-m="{score.method.id}">'
        f"<h4>{swatch(look)}{escape(score.method.label)}</h4>"
        f"<p>{escape(str(row.get('completion', '')).strip())}</p>"
        f"<footer>{''.join(numbers)}{cut}</footer></section>"
    )


def provenance(analysis: Analysis, folder: Path) -> str:
    """Command, machine, versions, the configuration of every method, and every run folder."""
    study = analysis.study
    facts = {
        "study": study.name,
        "created": study.created or "not recorded",
        "command": study.command or "not recorded",
        "overrides": " ".join(study.overrides) or "none",
        "jobs": str(len(study.jobs)),
        "seeds": " ".join(map(str, study.seeds)),
    }
    facts |= _environment(list(study.runs.values()))
    listing = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    configs = "".join(_config(analysis, score) for score in analysis.scores)
    rows = "".join(_run_row(run, folder) for run in study.runs.values())
    heads = "".join(
        f'<th scope="col">{t}</th>'
        for t in ("Run folder", "Label", "Seed", "State", "Time", "Made from")
    )
    return (
        f'<dl class="facts">{listing}</dl><h3>Configuration of each method</h3>{configs}'
        f"<h3>Runs</h3>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table class="runs">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _environment(runs: list[RunFolder]) -> dict[str, str]:
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


def _config(analysis: Analysis, score: Score) -> str:
    method = score.method
    seed = method.seeds[0]
    policy, run = method.policies.get(seed), method.evaluations[seed]
    parts = [("evaluation", run)] + ([("policy", policy)] if policy else [])
    body = "".join(
        f"<h4>{name}: {escape(r.name)}</h4><pre>{escape(_json(r.config))}</pre>"
        for name, r in reversed(parts)
    )
    evaluated = ", ".join(
        f"seed {s}: {escape(r.name)} (gold {plain(score.per_seed['gold'].get(s, float('nan')), 3)})"
        for s, r in method.evaluations.items()
    )
    over = score.over_sft.get("gold")
    gain = f", {signed(over.value, 3)} over {analysis.base_name}" if over else ""
    return (
        f'<details id="config-{method.id}"><summary>{escape(method.full_label)} '
        '<span class="quiet">'
        f"{escape(method.settings)}{gain}</span></summary><p>{evaluated}</p>{body}</details>"
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)


def _run_row(run: RunFolder, folder: Path) -> str:
    link = escape(os.path.relpath(run.path, folder).replace(os.sep, "/"), quote=True)
    made = ", ".join(f"{role}: {name}" for role, name in run.inputs.items())
    state = "done" if run.done else "not finished"
    cells = (
        run.label,
        str(run.record.get("seed", "—")),
        state,
        seconds_text(run.number("seconds")),
        made,
    )
    return (
        f'<tr id="run-{escape(run.name, quote=True)}">'
        f'<th scope="row"><a href="{link}/">{escape(run.name)}</a></th>'
        + "".join(f"<td>{escape(text)}</td>" for text in cells)
        + "</tr>"
    )
