"""The section on judges: win rates, raw and at equal length, and what the judge is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignlab.report.analysis import Analysis
from alignlab.report.elements import cell, heading, method_link, run_link, table, with_interval
from alignlab.report.judging.doubts import doubts
from alignlab.report.judging.figure import win_rates
from alignlab.report.judging.numbers import Bench, Judged, benches
from alignlab.report.part import Part
from alignlab.report.statistics import Interval
from alignlab.report.style import Look, swatch
from alignlab.report.svg import picture
from alignlab.report.verdict import between, digits_for, plain, signed

LEAD = (
    "Two answers to one prompt, shown in both orders: a win needs both orders to agree, everything "
    "else is a tie and counts half. <em>At equal length</em> is the win rate that a logistic model "
    "of the verdicts predicts where both answers are equally long. Intervals are 95 % over "
    "training seeds and prompts."
)
COLUMNS = (
    ("Method", ""),
    ("Win rate", "ties half"),
    ("At equal length", "prediction of the logistic model at no difference in length"),
    ("Ties", "orders disagree, or the judge says so"),
    ("Matches", "with a verdict in both orders"),
    ("Tokens", "more than the opponent's, mean"),
    ("Length counts", "coefficient of tanh(Δ length / sd) on the logit scale: the judge's taste"),
    ("Strength", "Bradley–Terry log-strength over the opponent"),
    ("Runs", ""),
)


def part(analysis: Analysis, looks: Mapping[str, Look], folder: Path) -> Part:
    """Figure, tables and doubts from the judge runs of a study; empty without any."""
    found = [bench for bench in benches(analysis) if bench.judged]
    if not found:
        return Part()
    html = [f'<p class="lead">{LEAD}</p>']
    for index, bench in enumerate(found):
        name = "judging" if index == 0 else f"judging-{index + 1}"
        html.append(f"<h3>{escape(bench.judge)}, against {escape(bench.opponent)}</h3>")
        titles = {one.method.id: _said(one) for one in bench.judged}
        text = f"Win rates by {bench.judge} against {bench.opponent}. " + "; ".join(titles.values())
        html.append(picture(win_rates(bench, looks), name, text, looks, folder, titles=titles))
        html.append(_table(bench, looks))
        html.append(_facts(bench))
    return Part(
        html="".join(html),
        tables={
            "judging": [_row(bench, one) for bench in found for one in bench.judged],
            "judges": [_judge_row(bench) for bench in found],
        },
        concerns=tuple(doubts(found)),
    )


def percent(found: Interval) -> str:
    """A share and its interval in per cent; one decimal where the interval is narrow."""
    digits = 1 if found.error < 0.01 else 0
    scaled = Interval(100 * found.value, 100 * found.low, 100 * found.high, 100 * found.error)
    return f"{plain(scaled.value, digits)} % <small>{between(scaled, digits)}</small>"


def _said(one: Judged) -> str:
    return (
        f"{one.method.label}: {one.win.value:.0%} [{one.win.low:.0%}, {one.win.high:.0%}], at equal"
        f" length {one.controlled.value:.0%}"
    )


def _table(bench: Bench, looks: Mapping[str, Look]) -> str:
    rows = []
    for one in bench.judged:
        method = one.method
        links = " ".join(run_link(run.name, str(seed)) for seed, run in one.runs.items())
        name = f"{swatch(looks[method.id])}{escape(method.label)}"
        cells = [
            f'<th scope="row" data-v="{escape(method.label, quote=True)}">{name}</th>',
            cell(method_link(method.id, percent(one.win)), one.win.value),
            cell(method_link(method.id, percent(one.controlled)), one.controlled.value),
            cell(f"{one.ties:.0%}", one.ties),
            cell(str(one.matches - one.no_verdict), one.matches - one.no_verdict),
            cell(with_interval(one.tokens, sign=True), one.tokens.value),
            cell(signed(one.length_effect, 1), one.length_effect),
            cell(with_interval(one.strength, _digits(one.strength), sign=True), one.strength.value),
            cell(f"seed {links}", kind="text"),
        ]
        rows.append(f'<tr data-m="{method.id}">{"".join(cells)}</tr>')
    head = "".join(heading(text, title) for text, title in COLUMNS)
    caption = f"{bench.judge}: methods against {bench.opponent}, highest win rate first"
    return table(head, rows, "sortable judging", caption)


def _digits(found: Interval) -> int:
    return min(2, max(1, digits_for(found.error)))


def _facts(bench: Bench) -> str:
    """What is known about the judge itself."""
    facts: dict[str, str] = {}
    if bench.consistency is not None:
        why = " (by construction: what a position is worth is taken away)" * bench.balanced
        facts["Same verdict in both orders"] = f"{bench.consistency:.0%} of the matches{why}"
    if bench.first is not None:
        facts["Position"] = (
            f"{percent(bench.first)} of the winners it names were shown first (50 % without bias)"
        )
    if bench.repeat_agreement is not None:
        how = "by construction: nothing is sampled" if bench.deterministic else "of a sample"
        facts["Asked twice, same reply"] = f"{bench.repeat_agreement:.0%} ({how})"
    if bench.kappa is not None:
        facts["Agreement with gold"] = f"κ = {plain(bench.kappa, 2)} (Cohen: 0 is chance, 1 is all)"
    if bench.identical_ties is not None:
        facts["Equal texts"] = (
            f"tie in {bench.identical_ties:.0%}; first named in {bench.identical_first or 0:.0%},"
            f" second in {bench.identical_second or 0:.0%}"
        )
    if bench.verbose_wins is not None:
        facts["A text against itself said twice"] = (
            f"the copy wins {bench.verbose_wins:.0%}, loses {bench.verbose_losses or 0:.0%}"
        )
    facts["Cost"] = _cost(bench)
    facts["Fingerprint"] = f"<code>{escape(bench.fingerprint)}</code>"
    items = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    return f'<h4>What this judge is worth</h4><dl class="facts">{items}</dl>'


def _cost(bench: Bench) -> str:
    spent = bench.spent
    usd = "unknown cost" if spent["cost_usd"] is None else f"{spent['cost_usd']:.2f} USD"
    tokens = (spent["judge_tokens_in"] or 0) + (spent["judge_tokens_out"] or 0)
    return (
        f"{usd}; {spent['calls'] or 0:.0f} requests, {tokens:,.0f} tokens, "
        f"{spent['cache_hits'] or 0:.0f} replies from memory"
    )


def _row(bench: Bench, one: Judged) -> dict[str, Any]:
    row: dict[str, Any] = {
        "judge": bench.judge,
        "opponent": bench.opponent,
        "method": one.method.id,
        "label": one.method.full_label,
        "seeds": " ".join(map(str, one.runs)),
        "matches": one.matches,
        "no_verdict": one.no_verdict,
        "decided": one.decided,
        "ties": one.ties,
    }
    row |= _ends("win_rate", one.win) | _ends("lc_win_rate", one.controlled)
    row |= {"length_effect": one.length_effect, "length_overlap": one.overlap}
    row |= _ends("tokens_over_opponent", one.tokens) | _ends("bradley_terry", one.strength)
    row |= _ends("gold_over_opponent", one.gold)
    row |= _ends("gold_at_equal_length", one.gold_at_equal_length)
    return row | {"runs": " ".join(run.name for run in one.runs.values())}


def _ends(name: str, found: Interval | None) -> dict[str, float | None]:
    values: Sequence[float | None] = (
        (None, None, None) if found is None else (found.value, found.low, found.high)
    )
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _judge_row(bench: Bench) -> dict[str, Any]:
    return {
        "judge": bench.judge,
        "fingerprint": bench.fingerprint,
        "opponent": bench.opponent,
        "deterministic": bench.deterministic,
        "balanced": bench.balanced,
        "consistency": bench.consistency,
        **_ends("first_position", bench.first),
        "repeat_agreement": bench.repeat_agreement,
        "kappa_with_gold": bench.kappa,
        "identical_ties": bench.identical_ties,
        "identical_first": bench.identical_first,
        "identical_second": bench.identical_second,
        "verbose_wins": bench.verbose_wins,
        "verbose_losses": bench.verbose_losses,
        **bench.spent,
        "runs": " ".join(run.name for run in bench.runs),
    }
