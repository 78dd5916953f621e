"""The tables of the page as HTML; every text from a run or a config is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from alignlab.report.analysis import Analysis, Score, hacks_gold
from alignlab.report.concerns import Concern
from alignlab.report.elements import (
    Looks,
    cell,
    column_digits,
    heading,
    method_link,
    name_cell,
    table,
    whisker,
    with_interval,
)
from alignlab.report.figures import leading
from alignlab.report.folders import RunFolder
from alignlab.report.statistics import Interval
from alignlab.report.style import swatch
from alignlab.report.table import COSTS, shared_stages
from alignlab.report.verdict import (
    amount,
    gold_digits,
    memory_text,
    p_text,
    plain,
    seconds_text,
)
from alignlab.stages.stage import METHOD_KINDS

MATRIX = 20  # methods in the table of wins; differences.csv has all
RANKING = (
    ("Method", "", "name"),
    ("Gold reward", "mean over prompts and seeds, 95 % interval; dashed: SFT", "wide"),
    ("Over {base}", "paired difference on the same seeds and prompts", ""),
    ("p", "sign-flip test on prompts against SFT, Holm-adjusted over all pairs of methods", ""),
    ("Rank", "plausible ranks by gold reward (95 %)", ""),
    ("Audit", "a second gold reward that no stage sees", ""),
    ("Proxy", "the learned reward that PPO and GRPO train on", ""),
    ("KL", "nats per sequence to the SFT reference, own samples, unclamped mean", ""),
    ("Length", "tokens per completion", ""),
    ("Distinct-2", "distinct bigrams over all bigrams of the completions", ""),
    ("Repeats", "share of trigrams that repeat an earlier one of the same completion", ""),
    ("EOS", "share of completions that end by themselves", ""),
    ("Human text", "NLL per token of human continuations: higher than SFT means forgetting", ""),
    ("Time", "seconds of the method's own stage", ""),
    ("Tokens", "trained + sampled, own stage", ""),
    ("FLOPs", "own stage", ""),
    ("Memory", "peak of the own stage", ""),
)


def ranking(analysis: Analysis, looks: Looks) -> str:
    """Table of all methods, best gold first; of a sweep the compared settings, the rest folded."""
    if analysis.equal_kl is None:
        return _ranked(analysis, analysis.scores, looks, "All methods, best gold reward first")
    kl = f"{analysis.equal_kl:.2g}"
    caption = f"One setting per method, compared near a KL of {kl} nats, best gold reward first"
    whole = _ranked(analysis, analysis.scores, looks, "All settings, best gold reward first")
    return (
        f"{_ranked(analysis, analysis.compared, looks, caption)}<details class="
        f'"unfold" id="settings"><summary>All {len(analysis.scores)} settings of the sweep'
        f"</summary>{whole}</details>"
    )


def _ranked(analysis: Analysis, scores: Sequence[Score], looks: Looks, caption: str) -> str:
    digits = gold_digits(analysis)
    golds = [s.metrics["gold"] for s in scores]
    span = (min(g.low for g in golds), max(g.high for g in golds))
    zero = analysis.baseline.value("gold") if analysis.baseline else None
    rows = []
    places = {m: column_digits(s.metrics.get(m) for s in scores) for m in PROPERTIES}
    for score in scores:
        gold = score.metrics["gold"]
        picture = whisker(gold, span, looks[score.method.id], zero)
        rows.append(
            f'<tr data-m="{score.method.id}">{name_cell(score, looks)}'
            + cell(f"{picture}<span>{_linked(score, gold, digits)}</span>", gold.value, "wide")
            + _compared(score, digits)
            + _properties(score, places)
            + _costs(score)
            + "</tr>"
        )
    head = "".join(
        heading(text.format(base=escape(analysis.base_name)), *rest) for text, *rest in RANKING
    )
    return table(head, rows, "sortable ranking", caption)


def _linked(score: Score, found: Interval | None, digits: int, *, sign: bool = False) -> str:
    """A number that leads to the runs it is a mean over."""
    text = with_interval(found, digits, sign=sign)
    return method_link(score.method.id, text) if found is not None else text


def _compared(score: Score, digits: int) -> str:
    over = score.over_sft.get("gold")
    rank = "–".join(str(r) for r in dict.fromkeys(score.ranks))
    return (
        cell(_linked(score, over, digits, sign=True), over.value if over else None)
        + cell(p_text(score.p_over_sft).replace("<", "&lt;"), score.p_over_sft)
        + cell(rank, score.ranks[0])
    )


PROPERTIES = (
    "audit", "proxy", "kl", "tokens", "distinct_2", "repetition", "finished", "reference_nll",
)  # fmt: skip


def _properties(score: Score, places: Mapping[str, int]) -> str:
    cells = []
    for metric in PROPERTIES:
        found = score.metrics.get(metric)
        if metric == "kl" and score.kl_is_analytic:
            text = f'<span title="analytic upper bound">≤ {score.value("kl"):.2f}</span>'
        elif metric == "finished" and found:
            text = f"{found.value:.0%}"
        elif metric in ("distinct_2", "repetition", "reference_nll") and found:
            text = plain(found.value, 2)
        else:
            text = _linked(score, found, places[metric])
        cells.append(cell(text, score.value(metric)))
    return "".join(cells)


def _tokens(score: Score) -> float | None:
    parts = [score.cost.get("tokens_trained"), score.cost.get("tokens_sampled")]
    known = [p for p in parts if p is not None]
    return sum(known) if known else None


def _costs(score: Score) -> str:
    cost, tokens = score.cost, _tokens(score)
    return (
        cell(seconds_text(cost.get("seconds")), cost.get("seconds"))
        + cell(amount(tokens), tokens)
        + cell(amount(cost.get("flops")), cost.get("flops"))
        + cell(memory_text(cost.get("peak_memory_bytes")), cost.get("peak_memory_bytes"))
    )


def over_optimisation(analysis: Analysis, looks: Looks) -> str:
    """Who moves gold, and does the audit reward, which no stage sees, move with it."""
    rows = []
    rewards = ("gold", "audit", "proxy")
    shown = leading(analysis)
    places = {k: column_digits(s.over_sft.get(k) for s in shown) for k in rewards}
    for score in shown:
        if not score.over_sft:
            continue
        cells = "".join(
            cell(_linked(score, found, places[k], sign=True), found.value if found else None)
            for k, found in ((k, score.over_sft.get(k)) for k in rewards)
        )
        rows.append(
            f'<tr data-m="{score.method.id}">{name_cell(score, looks, settings=False)}{cells}'
            f"{cell(_reading(score), kind='text')}</tr>"
        )
    if not rows:
        return '<p class="quiet">The reference was not evaluated: no gains to show.</p>'
    base = escape(analysis.base_name)
    titles = ("Method", *(f"{k.title()} over {base}" for k in rewards), "Reading")
    head = "".join(heading(t, kind="text" if t == "Reading" else "") for t in titles)
    return table(head, rows, "sortable", f"Gains over {analysis.base_name} by each reward")


def _reading(score: Score) -> str:
    gold, audit, proxy = (score.over_sft.get(k) for k in ("gold", "audit", "proxy"))
    if gold is None or audit is None:
        return "audit not recorded"
    if hacks_gold(score):
        return "<b>gold rises, audit does not</b>: possibly an exploit of the gold reward"
    if gold.low > 0:
        return "both rise"
    if gold.high < 0:
        return "gold falls"
    if proxy is not None and proxy.low > 0:
        return "<b>proxy rises, gold does not</b>: possibly an exploit of the reward model"
    return "no clear change"


def wins(analysis: Analysis, looks: Looks) -> str:
    """How often the row's method scores above the column's on the same prompt and seed."""
    scores = analysis.compared[:MATRIX]
    head = heading("Row beats column", sortable=False) + "".join(
        f'<th scope="col" data-m="{s.method.id}" class="short">{swatch(looks[s.method.id])}'
        f"<span>{escape(s.method.label)}</span></th>"
        for s in scores
    )
    head += heading("Strength", "Bradley–Terry log-strength, 95 % interval", sortable=False)
    rows = []
    places = column_digits(s.strength for s in scores)
    for row in scores:
        cells = [_win(analysis, row, column) for column in scores]
        cells.append(cell(with_interval(row.strength, places, sign=True)))
        rows.append(
            f'<tr data-m="{row.method.id}">'
            f"{name_cell(row, looks, settings=False)}{''.join(cells)}</tr>"
        )
    return table(head, rows, "wins", "Win rates on gold reward")


def _win(analysis: Analysis, row: Score, column: Score) -> str:
    method = f' data-m="{column.method.id}"'
    found = analysis.pair(row.method.id, column.method.id)
    if found is None:
        return f'<td{method} class="self">·</td>'
    rate = analysis.wins[row.method.id, column.method.id]
    side = "up" if rate > 0.5 else "down"
    shade = round(abs(rate - 0.5) * 100)
    sure = " sure" if found[0].distinguishable else ""
    return f'<td{method} class="{side}{sure}" style="--shade:{shade}%">{rate:.0%}</td>'


def shared_cost(analysis: Analysis) -> str:
    """Cost of the stages before the policies, each once, and the sum of the whole study."""
    study = analysis.study
    groups: dict[str, Sequence[RunFolder]] = dict(shared_stages(study))
    evaluations = [r for r in study.runs.values() if r.kind == "evaluate"]
    policies = [r for r in study.runs.values() if r.kind in METHOD_KINDS]
    rows = [_cost_row(title, runs) for title, runs in groups.items()]
    rows += [_cost_row("all policy stages", policies), _cost_row("all evaluations", evaluations)]
    rows.append(_cost_row("whole study", list(study.runs.values()), "total"))
    titles = ("Stage", "Runs", "Time", "Tokens trained", "Tokens sampled", "FLOPs", "Peak memory")
    head = "".join(heading(t, sortable=False) for t in titles)
    return table(
        head, rows, "cost", "Sums over runs; a stage that several methods share ran once per seed"
    )


def _cost_row(title: str, runs: Sequence[RunFolder], kind: str = "") -> str:
    known = {key: [v for v in (r.number(key) for r in runs) if v is not None] for key in COSTS}
    total = {key: sum(values) if values else None for key, values in known.items()}
    peak = max(known["peak_memory_bytes"], default=None)
    cells = [
        str(len(runs)), seconds_text(total["seconds"]), amount(total["tokens_trained"]),
        amount(total["tokens_sampled"]), amount(total["flops"]), memory_text(peak),
    ]  # fmt: skip
    return (
        f'<tr class="{kind}"><th scope="row">{escape(title)}</th>{"".join(map(cell, cells))}</tr>'
    )


def concern_list(found: Sequence[Concern]) -> str:
    """What could be wrong, serious things first."""
    if not found:
        return "<p>Nothing was found by the automatic checks.</p>"
    items = "".join(
        f'<li class="{c.level}"><b>{escape(c.topic)}</b> {escape(c.text)}.</li>' for c in found
    )
    return f'<ul class="concerns">{items}</ul>'
