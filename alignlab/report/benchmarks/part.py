"""The section on benchmarks: forgetting against SFT by task, and how good the reward model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from alignlab.report.analysis import Analysis
from alignlab.report.benchmarks.figure import calibration, changes
from alignlab.report.benchmarks.numbers import (
    Change,
    RewardModel,
    TaskTable,
    headlines,
    reward_models,
    tables,
)
from alignlab.report.concerns import Concern
from alignlab.report.elements import cell, heading, method_link, run_link, table, with_interval
from alignlab.report.folders import RunFolder, number
from alignlab.report.part import Part
from alignlab.report.statistics import Interval
from alignlab.report.style import Look, swatch
from alignlab.report.svg import picture
from alignlab.report.verdict import digits_for, plain, signed

LEAD = (
    "Every number is one policy against SFT on the same items: Δ with its 95 % interval over "
    "training seeds and items. The shaded side of a panel is the worse one. Bold: worse or better "
    "than SFT, Holm-adjusted over the whole table."
)
MOST = 6  # names in a sentence
Row = Mapping[str, Any]


def part(analysis: Analysis, looks: Mapping[str, Look], folder: Path) -> Part:
    """Tables, figures and doubts from the benchmark and reward_benchmark runs of a study."""
    found = tables(analysis)
    models = reward_models(analysis.study.runs)
    if not found and not models:
        return Part()
    html = []
    if found:
        html.append(f'<p class="lead">{LEAD}</p>')
        titles = {c.method.id: c.method.label for t in found for c in t.changes}
        html.append(
            picture(
                changes(headlines(found), looks), "benchmarks", _described(found), looks, folder,
                titles=titles,
            )
        )  # fmt: skip
        html.append(_changes_table(found, looks))
        html.append(_runs(found))
    if models:
        html.append("<h3>Reward model</h3>")
        text = "How often the reward model orders a pair right against its confidence, by set"
        html.append(picture(calibration(models), "calibration", text, looks, folder))
        html.append(_models_table(models))
    rows = {"benchmarks": _change_rows(found), "reward_models": _model_rows(models)}
    return Part(
        html="".join(html),
        tables={stem: listed for stem, listed in rows.items() if listed},
        concerns=tuple(doubts(analysis, found, models)),
    )


def _described(found: Sequence[TaskTable]) -> str:
    said = [
        f"{t.task}, {t.title}, {c.method.label}: {signed(c.delta.value, digits_for(c.delta.error))}"
        for t in headlines(found)
        for c in t.changes
        if c.delta is not None
    ]
    return "Differences from SFT by task. " + "; ".join(said)


def _changes_table(found: Sequence[TaskTable], looks: Mapping[str, Look]) -> str:
    methods = list({c.method.id: c.method for t in found for c in t.changes}.values())
    head = heading("task") + heading("metric", kind="text") + heading("items")
    for method in methods:
        kind = "value" if method.baseline else "Δ against SFT"
        name = f"{swatch(looks[method.id])}{escape(method.label)}<br><small>{kind}</small>"
        head += heading(name, sortable=False)
    rows = []
    for t in found:
        arrow = {"higher": "↑", "lower": "↓", None: ""}[t.better]
        cells = [
            f'<th scope="row">{escape(t.task)}</th>',
            cell(f"{escape(t.title)} {arrow}", kind="text"),
            cell(str(t.items), t.items),
            *(_change_cell(t.of(m.id), baseline=m.baseline) for m in methods),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = "Benchmarks; ↑ higher is better, ↓ lower is better"
    return table(head, rows, "changes", caption)


def _change_cell(change: Change | None, *, baseline: bool) -> str:
    if change is None:
        return cell("—")
    shown: Interval | None = change.value if baseline else change.delta
    if shown is None:
        return cell(f"({with_interval(change.value)})", change.value.value)
    text = with_interval(shown, _digits(shown), sign=not baseline)
    if change.verdict and change.holm is not None and change.holm < 0.05:
        text = f"<b>{text}</b>"
    return cell(method_link(change.method.id, text), shown.value)


def _digits(found: Interval) -> int:
    return min(3, max(2, digits_for(found.error)))


def _runs(found: Sequence[TaskTable]) -> str:
    """Which runs the numbers come from."""
    methods = {c.method.id: c.method for t in found for c in t.changes}.values()
    parts = []
    for method in methods:
        links = ", ".join(
            run_link(run.name, f"seed {seed}") for seed, run in sorted(method.benchmarks.items())
        )
        parts.append(f"{escape(method.label)}: {links}")
    return f'<p class="quiet">Runs: {"; ".join(parts)}.</p>'


def _models_table(models: Sequence[RewardModel]) -> str:
    head = (
        heading("pairs") + heading("reward model", kind="text") + heading("number")
        + heading("accuracy", "share of pairs ordered right, a tie half")
        + heading("better is shorter", "accuracy on pairs whose better completion is the shorter")
        + heading("better is longer", "accuracy on pairs whose better completion is the longer")
        + heading("ECE", "expected calibration error of σ(margin), ten bins")
        + heading("Brier", "mean of (1 − p)²; 0.25 for no knowledge")
        + heading("length ρ", "rank correlation of score and length differences over pairs")
    )  # fmt: skip
    rows = []
    for m in models:
        cells = [
            f'<th scope="row">{escape(m.name)}</th>',
            cell(run_link(m.run.name, m.label), kind="text"),
            cell(str(m.pairs), m.pairs),
            cell(with_interval(m.accuracy), m.accuracy.value),
            cell(with_interval(m.shorter), m.shorter.value if m.shorter else None),
            cell(with_interval(m.longer), m.longer.value if m.longer else None),
            *(_number_cell(m, name) for name in ("ece", "brier", "length_correlation")),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return table(head, rows, "rewards", "Reward models on preference pairs")


def _number_cell(model: RewardModel, name: str) -> str:
    value = number(model.numbers.get(name))
    return cell(plain(value, 3), value)


def _change_rows(found: Sequence[TaskTable]) -> list[Row]:
    return [
        {
            "task": t.task, "metric": t.metric, "better": t.better, "items": t.items,
            "method": c.method.full_label, **_ends("value", c.value),
            **_ends("delta_vs_sft", c.delta), "p": c.p, "p_holm": c.holm, "verdict": c.verdict,
            "runs": " ".join(run.name for run in c.method.benchmarks.values()),
        }
        for t in found
        for c in t.changes
    ]  # fmt: skip


def _ends(name: str, found: Interval | None) -> dict[str, float | None]:
    if found is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _model_rows(models: Sequence[RewardModel]) -> list[Row]:
    return [
        {
            "set": m.task, "subset": m.subset, "reward_model": m.label, "run": m.run.name,
            "pairs": m.pairs, **_ends("accuracy", m.accuracy),
            **_ends("accuracy_better_is_shorter", m.shorter),
            **_ends("accuracy_better_is_longer", m.longer),
            **{n: m.numbers.get(n) for n in ("ece", "brier", "log_loss", "length_correlation")},
        }
        for m in models
    ]  # fmt: skip


def doubts(
    analysis: Analysis, found: Sequence[TaskTable], models: Sequence[RewardModel]
) -> Iterator[Concern]:
    """What a reader should know before believing the section, or the ranking after reading it."""
    yield from _forgotten(found)
    yield from _unbenchmarked(analysis, found)
    for model in models:
        if not model.subset and not model.accuracy.low > 0.5:
            text = f"{model.label} orders {model.accuracy.value:.2f} of {model.pairs} pairs of"
            yield Concern(
                "serious",
                "reward near chance",
                f"{text} {model.name} right, and its interval reaches one half: what was trained on"
                " it followed little that these pairs reward",
            )
        if not model.subset and model.shorter is not None and model.shorter.high < 0.5:
            yield Concern(
                "serious",
                "reward likes length",
                f"{model.label} is right on {model.shorter.value:.2f} of the pairs of {model.name}"
                " whose better completion is the shorter one: worse than a coin",
            )
    if (found or models) and not _decontaminated(analysis.study.runs):
        yield Concern(
            "note",
            "contamination",
            "whether the training data hold items of the benchmarks was not checked (data=refined"
            " with its decontaminate step does)",
        )


def _forgotten(found: Sequence[TaskTable]) -> Iterator[Concern]:
    worse = [(t, c) for t in found for c in t.changes if c.verdict == "worse"]
    by_method: dict[str, list[str]] = {}
    for t, c in worse:
        if c.forgot and c.delta is not None:
            digits = _digits(c.delta)
            by_method.setdefault(c.method.label, []).append(
                f"{t.task}, {t.title} ({signed(c.delta.value, digits)})"
            )
    for label, said in by_method.items():
        more = f" and {len(said) - MOST} more" if len(said) > MOST else ""
        yield Concern(
            "serious", "forgot", f"{label} is worse than SFT on {'; '.join(said[:MOST])}{more}"
        )
    unsure = [(t, c) for t, c in worse if not c.forgot]
    if unsure:
        compared = sum(
            c.delta is not None and t.better is not None for t in found for c in t.changes
        )
        said = [f"{c.method.label} on {t.task}, {t.title}" for t, c in unsure]
        more = f" and {len(said) - MOST} more" if len(said) > MOST else ""
        yield Concern(
            "note",
            "perhaps forgot",
            f"the interval of the difference from SFT lies on the worse side for"
            f" {'; '.join(said[:MOST])}{more}, though not after Holm's adjustment over {compared}"
            " comparisons",
        )


def _unbenchmarked(analysis: Analysis, found: Sequence[TaskTable]) -> Iterator[Concern]:
    if not found:
        return
    lacking = [
        s.method.label for s in analysis.scores if s.method.best_of == 1 and not s.method.benchmarks
    ]
    if lacking:
        text = (
            f"without benchmark runs, so nothing is known of what they forgot: {', '.join(lacking)}"
        )
        yield Concern("note", "not benchmarked", text)
    partial = [
        f"{m.label} ({len(m.benchmarks)} of {len(m.evaluations)} seeds)"
        for m in {c.method.id: c.method for t in found for c in t.changes}.values()
        if len(m.benchmarks) < len(m.evaluations)
    ]
    if partial:
        text = f"benchmarked on some of their training seeds only: {', '.join(partial)}"
        yield Concern("note", "benchmarks missing", text)


def _decontaminated(runs: Mapping[str, RunFolder]) -> bool:
    """Whether any training run's data went through a decontamination step."""
    return any(
        effect.get("step") == "decontaminate"
        for run in runs.values()
        for effects in ((run.record.get("data_card") or {}).get("splits") or {}).values()
        for effect in effects
        if isinstance(effect, Mapping)
    )
