"""Samples side by side per prompt: the data that the page browses, searches and votes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from alignlab.report.analysis import Analysis, Score
from alignlab.report.elements import UNSHOWN, clean, run_link
from alignlab.report.folders import number, prompt_key
from alignlab.report.style import Look, swatch
from alignlab.report.verdict import plain

SHOWN_PROMPTS = 30
SHOWN_ROWS = 4000  # of all prompts, seeds and methods together
SHOWN_BYTES = 2_000_000
FEWEST_PROMPTS = 3
METRICS = (("gold", "gold", 2), ("audit", "audit", 2), ("proxy", "proxy", 2), ("kl", "KL", 1),
           ("tokens", "tokens", 0))  # fmt: skip

Rows = dict[int, dict[str, tuple[int, Mapping[str, Any]]]]  # seed → method → (line, row)


@dataclass(frozen=True)
class Browsed:
    """What the page shows of a study's samples: prompts by the hash of their ids, seeds, rows."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: Mapping[str, Rows]


def chosen_prompts(analysis: Analysis, count: int = SHOWN_PROMPTS) -> list[str]:
    """Prompts to show: those with the smallest hash of their id, so that nobody picked them."""
    keys = {prompt_key(r) for s in analysis.scores for rows in s.method.rows.values() for r in rows}
    return sorted(keys, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:count]


def shown_scores(analysis: Analysis) -> Sequence[Score]:
    """Methods whose samples are shown: all, or of a sweep those that are compared."""
    return analysis.scores if analysis.equal_kl is None else analysis.compared


def browsed(analysis: Analysis) -> Browsed:
    """First completions of all methods, for as many prompts and seeds as a page can carry."""
    prompts = chosen_prompts(analysis)
    scores = shown_scores(analysis)
    most = SHOWN_ROWS // max(1, len(prompts) * len(scores))
    seeds = analysis.seeds[: max(1, most)]
    wanted = set(prompts)
    found: dict[str, Rows] = {key: {} for key in prompts}
    for score in scores:
        for seed in seeds:
            for line, row in enumerate(score.method.rows.get(seed, ()), 1):
                key = prompt_key(row)
                if key in wanted:
                    by_method = found[key].setdefault(seed, {})
                    by_method.setdefault(score.method.id, (line, row))
    kept: list[str] = []
    size = 0
    for key in prompts:
        size += sum(len(str(row.get("completion", ""))) + len(str(row.get("thinking", ""))) + 120
                    for by in found[key].values() for _, row in by.values())  # fmt: skip
        if size > SHOWN_BYTES and len(kept) >= FEWEST_PROMPTS:
            break
        kept.append(key)
    return Browsed(tuple(kept), tuple(seeds), found)


def prompt_text(rows: Rows, key: str) -> str:
    """The prompt as its rows have it, else its id."""
    texts = [str(row.get("prompt") or "") for by in rows.values() for _, row in by.values()]
    return next((text for text in texts if text), key)


def data(analysis: Analysis, shown: Browsed) -> str:
    """The samples as JSON for a data block of the page; nothing in it can end the block."""
    methods = [s.method for s in shown_scores(analysis)]
    order = {method.id: i for i, method in enumerate(methods)}
    content = {
        "study": analysis.study.name,
        "methods": [{"id": m.id, "label": m.label} for m in methods],
        "metrics": [[name, digits] for _, name, digits in METRICS],
        "seeds": list(shown.seeds),
        "runs": [{str(s): run.name for s, run in m.evaluations.items()} for m in methods],
        "prompts": [
            {
                "id": key,
                "text": prompt_text(shown.rows[key], key),
                "seeds": {
                    str(seed): [
                        [order[m], line, str(row.get("completion", "")), *_numbers(row)]
                        for m, (line, row) in by.items()
                    ]
                    for seed, by in sorted(shown.rows[key].items())
                },
            }
            for key in shown.prompts
        ],
    }
    return _block(content)


def _block(content: Any) -> str:
    """JSON that is safe between script tags: ``<`` begins no tag and no comment there."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("<", "\\u003c"))
    return f'<script type="application/json" id="samples-data">{text}</script>'


def _numbers(row: Mapping[str, Any]) -> list[Any]:
    """The metrics of a row, rounded as they are shown, whether it ended by itself, its thought."""
    values = (number(row.get(key)) for key, _, _ in METRICS)
    rounded = [None if v != v or abs(v) == float("inf") else round(v, 4) for v in values]
    thought = [str(row["thinking"])] if row.get("thinking") is not None else []
    return [*rounded, int(bool(row.get("finished", True))), *thought]


def samples_note(analysis: Analysis, shown: Browsed) -> str:
    """How the prompts were chosen, and where the others are."""
    few = len(shown.seeds) < len(analysis.seeds)
    seeds = f", and {len(shown.seeds)} of {len(analysis.seeds)} training seeds" if few else ""
    return (
        f"The first completion of every method for {len(shown.prompts)} of {analysis.prompts} "
        f"held-out prompts, chosen by a hash of their ids{seeds}; all are in samples.csv. Arrow "
        "keys move on. <em>Vote blind</em> hides the methods and shuffles them; the votes can be "
        "saved as preference pairs, to train or to evaluate with."
    )


def samples(analysis: Analysis, looks: Mapping[str, Look], shown: Browsed) -> str:
    """The browser with its first prompt, and the data from which a script shows the others."""
    if not shown.prompts:
        return ""
    first = shown.prompts[0]
    options = "".join(
        f'<option value="{i}">{i + 1}. {escape(_clip(prompt_text(shown.rows[key], key)))}</option>'
        for i, key in enumerate(shown.prompts)
    )
    seeds = "".join(f'<option value="{s}">seed {s}</option>' for s in shown.seeds)
    hidden = " hidden" if len(shown.seeds) == 1 else ""
    return f"""<div class="browser" id="browser"><div class="controls">
<button type="button" data-step="-1" aria-label="Previous prompt">‹</button>
<label class="grow"><span class="sr">Prompt</span><select id="prompt">{options}</select></label>
<button type="button" data-step="1" aria-label="Next prompt">›</button>
<label{hidden}><span class="sr">Training seed of the samples</span>
<select id="sample-seed">{seeds}</select></label>
<label class="search"><span class="sr">Search in prompts and completions</span>
<input type="search" id="search" placeholder="Search prompts and texts" autocomplete="off"></label>
<button type="button" id="vote-start" class="primary" hidden>Vote blind</button>
<span id="where" class="quiet" role="status">1 of {len(shown.prompts)}</span></div>
<div id="sheet">{_article(analysis, looks, prompt_text(shown.rows[first], first), shown, first)}
</div></div><div id="booth" class="booth" tabindex="-1" hidden></div>{data(analysis, shown)}"""


def _clip(text: str, length: int = 70) -> str:
    one = " ".join(clean(text).split())
    return one if len(one) <= length else f"{one[: length - 1]}…"


def _article(
    analysis: Analysis, looks: Mapping[str, Look], prompt: str, shown: Browsed, key: str
) -> str:
    """The first prompt as HTML, for a reader without scripts."""
    seed, by = min(shown.rows[key].items())
    cards = "".join(
        _card(score, looks[score.method.id], seed, *by[score.method.id])
        for score in shown_scores(analysis)
        if score.method.id in by
    )
    return (
        f'<article><p class="prompt">{escape(clean(prompt))} <span class="quiet">…</span></p>'
        f'<div class="cards">{cards}</div></article>'
    )


def _card(score: Score, look: Look, seed: int, line: int, row: Mapping[str, Any]) -> str:
    shown: Sequence[tuple[str, str, int]] = [
        (key, name, digits) for key, name, digits in METRICS if row.get(key) is not None
    ]
    numbers = "".join(
        f"<span>{name} <b>{plain(number(row.get(key)), digits)}</b></span>"
        for key, name, digits in shown
    )
    cut = "" if row.get("finished", True) else '<span class="cut">cut off</span>'
    run = score.method.evaluations[seed].name
    link = run_link(run, f"row {line}")
    thought = row.get("thinking")
    apart = (
        ""
        if thought is None
        else f'<details class="thought"><summary>thought</summary>'
        f"<p>{escape(clean(str(thought)))}</p></details>"
    )
    return (
        f'<section class="card" data-m="{score.method.id}" id="row-{escape(run)}-{line}">'
        f"<h4>{swatch(look)}{escape(score.method.label)}</h4>"
        f"{apart}<p>{escape(clean(str(row.get('completion', '')).strip()))}</p>"
        f"<footer>{numbers}{cut}{link}</footer></section>"
    )
