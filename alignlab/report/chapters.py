"""The chapters of a report, in the order of the page: each a part with its title and lead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

from alignlab.report import figures, length, sections, trials
from alignlab.report.analysis import Analysis
from alignlab.report.benchmarks import part as benchmarks
from alignlab.report.browser import browsed, samples, samples_note
from alignlab.report.curves import read_curves
from alignlab.report.exports import gain_rows, property_rows, ranking_rows
from alignlab.report.folders import RunFolder
from alignlab.report.frontier import part as frontier
from alignlab.report.judging import part as judging
from alignlab.report.overfitting import part as overfitting
from alignlab.report.part import Chapter, Part
from alignlab.report.style import CONTROLS, Look, swatch
from alignlab.report.svg import picture, shared_pdf
from alignlab.report.table import shared_stages
from alignlab.report.tuning import part as tuning

Looks = Mapping[str, Look]
CURVES = 16  # methods whose training curves are drawn, best first
LEADS = {
    "ranking": "Gold is the reward that judges; no method trained on it. Intervals are 95 % "
    "bootstrap over training seeds and prompts; differences are paired on the same seeds and "
    "prompts. Click a heading to sort; a number leads to its runs.",
    "frontier": "Further up is better, further left is closer to the SFT model. Bands and crosses "
    "are 95 % intervals, small dots are single training seeds, the dashed line is SFT.",
    "optimisation": "A method that exploits the judge moves gold without moving the audit reward, "
    "which no stage sees. One that exploits the reward model moves the proxy without gold.",
    "length": "Rewards and judges like long answers. <em>At equal length</em> takes from the gain "
    "what a completion of the same method earns per token, fitted over all prompts.",
    "curves": "Thick: mean over seeds; band: all seeds; dashed: validation. Losses of different "
    "methods are not comparable with each other.",
    "overfitting": "The same weights measured on held-out rows (dashed) and on rows that were "
    "trained on (solid); a ring marks the best evaluation. Copying is compared with human texts "
    "for the same prompts.",
    "cost": "The bars are each method's own stage, mean over seeds; pale: sampled tokens. Stages "
    "before it are shared and listed below, once.",
    "wins": "How often the row scores above the column on the same prompt and seed, ties half. "
    "Bold: distinguishable (Holm-adjusted p &lt; 0.05 and the interval of the difference excludes "
    "zero).",
}  # fmt: skip


def chapters(analysis: Analysis, looks: Looks, folder: Path) -> list[Chapter]:
    """All chapters that have something to show; their figures are written into ``folder``."""
    shown = browsed(analysis)
    rooms: Sequence[tuple[str, str, Callable[[Analysis, Looks, Path], Part]]] = (
        ("ranking", "Ranking", _ranking),
        ("frontier", "Reward–KL plane", frontier.part),
        ("optimisation", "Is the gain real?", _optimisation),
        ("judging", "Judged", judging.part),
        ("benchmarks", "Benchmarks and forgetting", benchmarks.part),
        ("length", "Length", length.part),
        ("tuning", "Tuning", tuning.part),
        ("trials", "Trials", trials.part),
        ("curves", "Training", _curves),
        ("overfitting", "Overfitting", overfitting.part),
        ("cost", "Cost", _cost),
        ("wins", "Against each other", _wins),
        ("samples", "Samples", lambda analysis, looks, _: Part(samples(analysis, looks, shown))),
    )
    leads = {**LEADS, "samples": samples_note(analysis, shown)}
    found = []
    for key, title, make in rooms if analysis.scores else ():
        before = _figures(folder)
        part = make(analysis, looks, folder)
        if part.html:
            drawn = sorted(_figures(folder) - before)
            found.append(Chapter(key, title, leads.get(key, ""), part, drawn))
    return found


def _figures(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.png")}


def _ranking(analysis: Analysis, looks: Looks, _: Path) -> Part:
    tables = {"ranking": ranking_rows(analysis), "properties": property_rows(analysis)}
    return Part(sections.ranking(analysis, looks), tables)


def _wins(analysis: Analysis, looks: Looks, _: Path) -> Part:
    return Part(sections.wins(analysis, looks))


def _optimisation(analysis: Analysis, looks: Looks, folder: Path) -> Part:
    text = "Gold, audit and proxy reward of every method; the numbers are in the ranking table"
    figure = picture(figures.rewards(analysis, looks), "rewards", text, looks, folder)
    table = sections.over_optimisation(analysis, looks)
    return Part(figure + table, {"gains": gain_rows(analysis)})


def _cost(analysis: Analysis, looks: Looks, folder: Path) -> Part:
    text = (
        "Seconds, tokens and FLOPs of each method's own stage; the numbers are in the ranking table"
    )
    figure = picture(figures.cost(analysis, looks), "cost", text, looks, folder)
    return Part(figure + sections.shared_cost(analysis))


def _curves(analysis: Analysis, looks: Looks, folder: Path) -> Part:
    """One small figure per trained method, then the shared stages in grey."""
    grey = Look(*CONTROLS["baseline"], "o")
    drawn = {**looks, "": grey}
    plans: list[tuple[str, str, Mapping[int, RunFolder]]] = []
    for score in analysis.trained[:CURVES]:
        own = {s: r for s, r in score.method.policies.items() if r is not None}
        plans.append((score.method.id, score.method.label, own))
    for index, (title, runs) in enumerate(list(shared_stages(analysis.study).items())[:CURVES]):
        plans.append((f"shared-{index}", title, _by_seed(runs)))
    read = [(key, title, read_curves(title, runs)) for key, title, runs in plans]
    parts = []
    with shared_pdf(folder / "curves.pdf") as pdf:
        for key, title, curves in read:
            if curves is None:
                continue
            look = looks.get(key, grey)
            figure = figures.curve(curves, look)
            text = f"Training curves of {title}: {', '.join(curves.panels)}"
            caption = f"{swatch(look)}{escape(title)}"
            owner = key if key in looks else ""
            parts.append(
                picture(figure, f"curve-{key}", text, drawn, folder, kind="small",
                        caption=caption, method=owner, pages=pdf)
            )  # fmt: skip
    if not parts:
        return Part()
    left = len(analysis.trained) - CURVES
    more = f'<p class="quiet">The {CURVES} best of {len(analysis.trained)} methods.</p>'
    return Part(f'<div class="grid">{"".join(parts)}</div>' + (more if left > 0 else ""))


def _by_seed(runs: Sequence[RunFolder]) -> dict[int, RunFolder]:
    """Runs of one stage by their seed, or counted where seeds are missing or repeat."""
    seeds = [run.record.get("seed") for run in runs]
    if len({s for s in seeds if isinstance(s, int)}) < len(runs):
        return dict(enumerate(runs))
    return {int(str(s)): run for s, run in zip(seeds, runs, strict=True)}
