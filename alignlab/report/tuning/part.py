"""The section on tuning: how much of a ranking is the method, and how much is the search."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignlab.report.analysis import Analysis
from alignlab.report.concern import Concern, note, serious, some
from alignlab.report.elements import cell, heading, run_link, table, with_interval
from alignlab.report.part import Part
from alignlab.report.style import Look, swatch
from alignlab.report.svg import picture
from alignlab.report.tuning import rows
from alignlab.report.tuning.figure import expected, rate_of, sensitivity
from alignlab.report.tuning.given import COLUMNS, Given, given
from alignlab.report.tuning.numbers import Flip, Tuning, flips, ranking, stops, tunings
from alignlab.report.verdict import amount, digits_for, plain

Looks = Mapping[str, Look]
LEAD = (
    "Every method was tried with several settings, and the one that scored best on validation "
    "prompts was tested. The curves say what fewer trials would have found: the expected best of "
    "k of the trials, drawn without replacement. Trials that diverged or failed were paid for and "
    "count as the worst."
)
SENSITIVITY = (
    "A dot is one trial, a ring the one that was chosen, a cross one that diverged or failed. The "
    "other settings vary along, so the spread at one learning rate is theirs and the seeds'."
)
UNTUNED = (
    "Every method ran with the settings that it was configured with; none was searched for. A "
    "ranking then compares the methods together with somebody's choice of settings."
)
GIVEN = (
    "Matched data on the left, matched compute on the right: what reached each method, and what "
    "it took. Means over training seeds. Verdicts behind a reward model count for whoever trains "
    "on it."
)


def part(analysis: Analysis, looks: Looks, folder: Path) -> Part:
    """Tables, figures and doubts from the searches of a study, and what each method was given."""
    found = tunings(analysis)
    resources = given(analysis)
    if not found and sum(not g.method.baseline for g in resources) < 2:
        return Part()
    if not found:
        html = f'<p class="lead">{UNTUNED}</p>{_given_table(resources, looks)}'
        doubt = note("tuning", UNTUNED)
        return Part(html, {"given": rows.given_rows(resources)}, [doubt])
    turned = flips(found) if len(found) > 1 else []
    pieces = [f'<p class="lead">{LEAD}</p>']
    pieces += [f"<p>{escape(sentence)}</p>" for sentence in said(found, turned)]
    titles = {t.method.id: t.method.label for t in found}
    text = _described(found)
    pieces.append(picture(expected(found, looks), "tuning", text, looks, folder, titles=titles))
    pieces.append(f"<h3>What was chosen</h3>{_search_table(found, looks)}")
    if len(found) > 1:
        pieces.append(f"<h3>Rank by the number of trials</h3>{_ranks_table(found, looks)}")
    text = "Validation score of every trial over its learning rate"
    drawn = picture(sensitivity(found, looks), "sensitivity", text, looks, folder, titles=titles)
    pieces.append(f"<h3>Sensitivity</h3><p class='lead'>{SENSITIVITY}</p>{drawn}" if drawn else "")
    pieces.append(_trials(found))
    pieces.append(_given_table(resources, looks))
    return Part(
        html="".join(pieces),
        tables={
            "tuning": rows.search_rows(found),
            "trials": rows.trial_rows(found),
            "ranks_by_trials": rows.rank_rows(found),
            "given": rows.given_rows(resources),
        },
        concerns=tuple(doubts(analysis, found, turned)),
    )


def said(found: Sequence[Tuning], turned: Sequence[Flip]) -> list[str]:
    """Whether the order of the methods depends on how much they are tuned."""
    if len(found) < 2:
        return []
    most = min(t.count for t in found)
    if not turned:
        return [
            f"The order of the methods is the same with one trial and with {most}: it does not "
            "depend on the tuning."
        ]
    sentences = [
        f"with one trial {f.ahead.method.label} is expected ahead of {f.behind.method.label}, "
        f"and from {f.at} trials on it is the other way round"
        for f in turned
    ]
    return [f"The ranking depends on the tuning: {some(sentences)}."]


def doubts(
    analysis: Analysis, found: Sequence[Tuning], turned: Sequence[Flip]
) -> Iterator[Concern]:
    """What could be wrong with the search."""
    searched = {t.method.id for t in found}
    plain_ones = [s.method.label for s in analysis.trained if s.method.id not in searched]
    if plain_ones:
        yield serious(
            "unequal tuning",
            f"{some(plain_ones)} ran as configured, beside methods that were searched over; a "
            "difference between them is also one of effort.",
        )
    if turned:
        yield serious("tuning decides", said(found, turned)[0])
    for tuning in found:
        edge = at_the_edge(tuning)
        if edge:
            yield note(
                "edge of the search",
                f"{tuning.method.label} chose the {edge} learning rate that was tried in most "
                "seeds; a better one may lie outside the range.",
            )
    broken = [
        f"{t.method.label} {sum(x.status == kind for x in t.all)} of {len(t.all)} {kind}"
        for t in found
        for kind in ("diverged", "failed")
        if t.share(kind) > 0
    ]
    if broken:
        yield note("trials without a score", f"{some(broken, 6)}; they count as the worst trial.")
    counts = {t.count for t in found}
    if len(counts) > 1:
        listed = ", ".join(f"{t.method.label} {t.count}" for t in found)
        yield note("trials per method", f"Not equal: {listed}; compare at equal compute.")


def at_the_edge(tuning: Tuning) -> str | None:
    """``lowest`` or ``highest``: which end of the learning rates most seeds chose, if one."""
    if tuning.count < 4:
        return None
    ends: Counter[str] = Counter()
    for seed, trial in tuning.chosen.items():
        rates = [rate for t in tuning.trials[seed] if (rate := rate_of(t)) > 0]
        if len(rates) < tuning.count:
            return None
        ends["lowest"] += rate_of(trial) == min(rates)
        ends["highest"] += rate_of(trial) == max(rates)
    end, times = ends.most_common(1)[0]
    return end if times > len(tuning.chosen) / 2 else None


def _described(found: Sequence[Tuning]) -> str:
    lines = [
        f"{t.method.label}: {plain(t.best_of(1))} with one trial, {plain(t.best_of(t.count))} with "
        f"{t.count}"
        for t in found
    ]
    return "Expected validation score of the best of k trials. " + "; ".join(lines)


def _digits(found: Sequence[Tuning]) -> int:
    errors = [t.gap.error for t in found if t.gap is not None and t.gap.error > 0]
    return max(2, digits_for(min(errors))) if errors else 3


def _name(method: Any, looks: Looks) -> str:
    return (
        f'<th scope="row">{swatch(looks[method.id])}'
        f'<a href="#config-{method.id}">{escape(method.label)}</a></th>'
    )


def _search_table(found: Sequence[Tuning], looks: Looks) -> str:
    digits = _digits(found)
    head = heading("method", sortable=False) + "".join(
        heading(text, title)
        for text, title in (
            ("trials", "per training seed"),
            ("diverged", "share of all trials"),
            ("failed", "share of all trials"),
            ("as configured", "validation score of the first trial, mean over seeds"),
            ("best", "validation score of the chosen trial, mean over seeds"),
            ("its test score", "of the same policies, mean over seeds"),
            ("validation − test", "positive: the winner's curse, and how the prompts differ"),
        )
    )
    head += heading("chosen settings", "one line per training seed", "text", sortable=False)
    lines = []
    for t in found:
        best = sum(x.value for x in t.chosen.values()) / len(t.chosen)
        test = sum(t.tested.values()) / len(t.tested)
        chosen = "<br>".join(
            run_link(t.method.selection[seed].name, rows.settings_text(trial))
            for seed, trial in sorted(t.chosen.items())
        )
        cells = [
            cell(str(t.count), t.count),
            *(_share(t.share(kind)) for kind in ("diverged", "failed")),
            cell(plain(t.configured, digits), t.configured),
            cell(plain(best, digits), best),
            cell(plain(test, digits), test),
            cell(with_interval(t.gap, digits, sign=True), t.gap.value if t.gap else None),
            cell(f"<small>{chosen}</small>", kind="text"),
        ]
        lines.append(f"<tr>{_name(t.method, looks)}{''.join(cells)}</tr>")
    return table(head, lines, "search", f"The search of each method, by {found[0].metric}")


def _share(value: float) -> str:
    return cell(f"{100 * value:.0f} %" if value else "—", value)


def _ranks_table(found: Sequence[Tuning], looks: Looks) -> str:
    digits = _digits(found)
    at = stops(found)
    ranks = {k: [t.method.id for t in ranking(found, k)] for k in at}
    head = heading("method", sortable=False) + "".join(
        heading(f"{k} trial{'s' * (k > 1)}", "rank, and the expected score of the best") for k in at
    )
    lines = []
    for t in found:
        cells = "".join(
            cell(
                f"{ranks[k].index(t.method.id) + 1} <small>{plain(t.best_of(k), digits)}</small>",
                ranks[k].index(t.method.id) + 1,
            )
            for k in at
        )
        lines.append(f"<tr>{_name(t.method, looks)}{cells}</tr>")
    return table(head, lines, "ranks", "Rank, and the expected validation score of the best trial")


def _trials(found: Sequence[Tuning]) -> str:
    """Every trial with its run, folded away."""
    items = []
    for tuning in found:
        for trial in tuning.all:
            value = plain(trial.value, 3) if math.isfinite(trial.value) else escape(trial.status)
            items.append(
                f"<li>{escape(tuning.method.label)}, seed {trial.seed}, trial {trial.number}: "
                f"{escape(rows.settings_text(trial))}: {value} {run_link(trial.run)}</li>"
            )
    return f"<details><summary>All {len(items)} trials</summary><ul>{''.join(items)}</ul></details>"


def _given_table(resources: Sequence[Given], looks: Looks) -> str:
    shown = [k for k in COLUMNS if any(getattr(g, k) is not None for g in resources)]
    head = heading("method", sortable=False) + "".join(heading(COLUMNS[k]) for k in shown)
    lines = [
        f"<tr>{_name(g.method, looks)}"
        + "".join(cell(amount(getattr(g, k)), getattr(g, k)) for k in shown)
        + "</tr>"
        for g in resources
    ]
    title = f'<h3>What each method was given</h3><p class="lead">{GIVEN}</p>'
    return title + table(head, lines, "given", "Data and compute of each method")
