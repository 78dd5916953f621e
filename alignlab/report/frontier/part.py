"""The section of the page on the reward–KL plane: figures, sentences, tables and their doubts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from alignlab.report.analysis import Analysis
from alignlab.report.concern import Concern, note
from alignlab.report.elements import (
    cell,
    column_digits,
    heading,
    method_link,
    run_link,
    table,
    whisker,
    with_interval,
)
from alignlab.report.frontier.figure import gains_figure, plane_figure
from alignlab.report.frontier.model import Curve, Plane
from alignlab.report.frontier.numbers import plane_of
from alignlab.report.frontier.sentences import SURE, comparison, listing, nats, number, peaks_of
from alignlab.report.frontier.tables import tables
from alignlab.report.part import Part
from alignlab.report.style import Look, swatch
from alignlab.report.svg import picture
from alignlab.report.verdict import between, gold_digits, p_text, plain

POOR = 4.0  # χ² per degree of freedom from which a fitted form does not describe the points
Looks = Mapping[str, Look]


def part(analysis: Analysis, looks: Looks, folder: Path) -> Part:
    """Everything about gold and proxy reward against KL; empty without a method that has both."""
    plane = plane_of(analysis)
    if not plane.curves:
        return Part()
    first = " ".join(escape(text) for text in comparison(plane))
    peaks = "".join(f"<li>{escape(text)}</li>" for text in peaks_of(plane))
    html = [
        _plane(analysis, plane, looks, folder),
        f"<p>{first}</p>" if first else "",
        f"<ul>{peaks}</ul>" if peaks else "",
        _areas(plane, looks),
        _gains(plane, looks, folder),
        _beside(plane, looks),
        _points(plane, looks),
    ]
    return Part("".join(html), tables(plane), list(_concerns(plane)))


def _plane(analysis: Analysis, plane: Plane, looks: Looks, folder: Path) -> str:
    digits = gold_digits(analysis)
    titles = {
        p.score.method.id: f"{p.score.method.label}: gold {plain(p.gold.value, digits)} "
        f"{between(p.gold, digits)}, KL {plain(p.kl.value, 2)} nats"
        for curve in plane.curves
        for p in curve.points
    }
    if plane.baseline is not None:
        zero = plane.baseline
        gold = zero.metrics["gold"]
        text = f"{zero.method.label}: gold {plain(gold.value, digits)} {between(gold, digits)}"
        titles[zero.method.id] = text
    description = (
        "Gold reward against KL to the reference; the settings of a method are joined. "
        + "; ".join(titles.values())
    )
    figure = plane_figure(plane, looks)
    return picture(figure, "frontier", description, looks, folder, titles=titles)


def _areas(plane: Plane, looks: Looks) -> str:
    """Families at equal KL: mean over √KL, gold at some KLs, and the best within budgets."""
    if plane.top is None or not plane.areas:
        return ""
    means = [a.mean for a in plane.areas if a.mean is not None]
    span = (min(m.low for m in means), max(m.high for m in means))
    best = plane.areas[0].curve.family
    rows = []
    for area in plane.areas:
        look, mean = looks[area.curve.lead], area.mean
        drawn = whisker(mean, span, look, None) if mean else ""
        pair = next((p for p in plane.pairs if {p.a, p.b} == {best, area.curve.family}), None)
        p = p_text(pair.holm).replace("<", "&lt;") if pair else "—"
        rows.append(
            f"<tr>{_family(area.curve, looks)}"
            + cell(
                f"{drawn}<span>{with_interval(mean)}</span>", mean.value if mean else None, "wide"
            )
            + cell(p, pair.holm if pair else None)
            + "".join(cell(with_interval(i), i.value if i else None) for i in area.at)
            + cell(with_interval(area.best[-1]), area.best[-1].value)
            + "</tr>"
        )
    top = nats(plane.top)
    head = (
        heading("Method", kind="name")
        + heading("Mean gold", f"gold at equal KL, averaged over √KL from 0 to {top} nats", "wide")
        + heading("p", f"difference of the means from {best}, Holm-adjusted over all pairs")
        + "".join(
            heading(f"at KL {b:g}", "between its settings, linear in √KL") for b in plane.budgets
        )
        + heading(
            f"best ≤ {plane.budgets[-1]:g}",
            "best setting within that KL, less what choosing it on these prompts flatters",
        )
    )
    return table(head, rows, "sortable", f"Gold reward at equal KL, up to {top} nats")


def _family(curve: Curve, looks: Looks) -> str:
    count = f"{len(curve.points)} settings" if len(curve.points) > 1 else "1 setting"
    return (
        f'<th scope="row" data-v="{escape(curve.family, quote=True)}">{swatch(looks[curve.lead])}'
        f"{escape(curve.family)}<small>{count}</small></th>"
    )


def _gains(plane: Plane, looks: Looks, folder: Path) -> str:
    drawn = []
    for curve in plane.curves:
        look = looks[curve.lead]
        text = f"Gold and proxy of {curve.family} over SFT against the square root of the KL"
        caption = f"{swatch(look)}{escape(curve.family)}{_form_text(curve)}"
        name, figure = f"gain-{curve.lead}", gains_figure(curve, look)
        drawn.append(picture(figure, name, text, looks, folder, kind="small", caption=caption))
    title = "<h3>Gold and proxy reward against √KL</h3>"
    return f'{title}<div class="grid">{"".join(drawn)}</div>' if any(drawn) else ""


def _form_text(curve: Curve) -> str:
    """The fitted form, as Gao et al. write it."""
    if curve.fit is None:
        return ""
    alpha, beta = plain(curve.fit.alpha.value), curve.fit.beta.value
    inner = "log d" if curve.fit.form == "rl" else "d"
    sign = "−" if beta >= 0 else "+"
    return f' <small class="quiet">R(d) = d ({alpha} {sign} {plain(abs(beta))} {inner})</small>'


def _beside(plane: Plane, looks: Looks) -> str:
    """Families of one setting against the curves, at the KL of that setting."""
    if not plane.beside:
        return ""
    places = column_digits(b.difference for b in plane.beside)
    rows = []
    for b in plane.beside:
        method = b.single.score.method
        name = f"{swatch(looks[method.id])}{escape(method.label)}"
        rows.append(
            f'<tr data-m="{method.id}"><th scope="row">{name}</th>'
            + cell(method_link(method.id, nats(b.single.kl.value)), b.single.kl.value)
            + cell(method_link(method.id, with_interval(b.single.gold)), b.single.gold.value)
            + cell(escape(b.curve), kind="text")
            + cell(with_interval(b.there), b.there.value)
            + cell(with_interval(b.difference, places, sign=True), b.difference.value)
            + "</tr>"
        )
    titles = ("Setting", "KL", "Gold", "Against", "its gold at that KL", "Difference")
    head = "".join(heading(t, kind="text" if t == "Against" else "") for t in titles)
    caption = "Methods of one setting against the curves of the others, at the KL of that setting"
    return "<h3>One setting, at equal KL</h3>" + table(head, rows, "sortable", caption)


def _points(plane: Plane, looks: Looks) -> str:
    """Every point with the runs it was measured in, folded away."""
    rows = []
    for curve in plane.curves:
        for point in curve.points:
            score = point.score
            bound = "≤ " if score.kl_is_analytic else ""
            runs = " ".join(run_link(r.name) for r in score.method.evaluations.values())
            rows.append(
                f'<tr data-m="{score.method.id}"><th scope="row">{swatch(looks[score.method.id])}'
                f"{escape(score.method.label)}</th>"
                + cell(bound + with_interval(point.kl, 2), point.kl.value)
                + cell(with_interval(point.gold), point.gold.value)
                + cell(with_interval(point.proxy_gain, sign=True))
                + cell(runs, kind="text")
                + "</tr>"
            )
    titles = ("Setting", "KL", "Gold", "Proxy over SFT", "Evaluations")
    head = "".join(heading(t, kind="text" if t == "Evaluations" else "") for t in titles)
    inner = table(head, rows, "sortable", "All settings, by method and KL")
    return f"<details><summary>All {len(rows)} settings and their runs</summary>{inner}</details>"


def _concerns(plane: Plane) -> Iterator[Concern]:
    for curve in plane.curves:
        if curve.misfit > POOR:
            yield note(
                "poor fit",
                f"{curve.family}: Gao et al.'s form does not describe the points (χ² per degree of "
                f"freedom {curve.misfit:.1f}), so its peak says little",
            )
        past, fit = curve.past, curve.fit
        if past is not None and fit is not None and past.high < 0 and fit.humps >= SURE:
            over = [p for p in curve.points if p.kl.value > fit.peak_d.high**2]
            names = listing([p.score.method.label for p in over or curve.points[-1:]])
            yield note(
                "past the peak",
                f"{names} {'lie' if len(over) > 1 else 'lies'} beyond the peak of gold along "
                f"{curve.family} (√KL {number(fit.peak_d)}): more KL bought proxy and lost gold",
            )
    for area in plane.areas:
        flattered = max(area.optimism, default=0.0)
        if flattered > 0.5 * area.best[-1].error:
            yield note(
                "chosen on test prompts",
                f"{area.curve.family}: choosing its best setting on the prompts that score it "
                f"flatters by about {flattered:.3f}, which the column of the best is less",
            )
    if plane.short:
        yield note(
            "KL ranges differ",
            f"{listing(plane.short)}: the sweep ends below the {nats(plane.top or 0.0)} nats up to "
            "which the others are compared",
        )
