"""What the parts of a mixture of data gave to each stage that read one, from the run records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from alignlab.report.elements import clean, run_link
from alignlab.report.folders import RunFolder
from alignlab.report.table import Study

HEADINGS = ("Split", "Part", "Has", "Gave", "Share", "Tokens", "Share of tokens")


def mixture_rows(study: Study) -> list[dict[str, Any]]:
    """One row for each part of a mixture and split that a run read; runs of other seeds once.

    ``share`` is of the groups that all parts gave; ``tokens`` are known of documents alone.
    """
    found: list[dict[str, Any]] = []
    seen = set()
    for run in study.runs.values():
        for row in _of_run(run):
            key = (run.kind, run.label, *(value for name, value in row.items() if name != "run"))
            if key not in seen:
                seen.add(key)
                found.append(row)
    return found


def _of_run(run: RunFolder) -> Iterator[dict[str, Any]]:
    splits = _mapping(_mapping(run.record.get("data_card")).get("splits"))
    tokens = _mapping(_mapping(run.record.get("corpus")).get("parts"))
    for split, parts in splits.items():
        if not isinstance(parts, Mapping):  # the steps of refined data
            continue
        total = sum(part.get("given", 0) for part in parts.values())
        for name, part in parts.items():
            read = tokens.get(name, {}) if split == "pretrain" else {}
            yield {
                "run": run.name,
                "split": split,
                "part": name,
                "rows": part.get("rows"),
                "given": part.get("given"),
                "share": part.get("given", 0) / total if total else None,
                "tokens": read.get("tokens"),
                "share_of_tokens": read.get("share"),
            }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def mixtures(study: Study) -> str:
    """The rows as a table; empty where no run read a mixture."""
    rows = mixture_rows(study)
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("Run", *HEADINGS))
    body = "".join(_row(row) for row in rows)
    return (
        '<h3>Mixtures</h3><div class="scroll" tabindex="0" role="region" aria-label="mixtures">'
        f'<table class="runs"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(row: Mapping[str, Any]) -> str:
    def count(value: int | None) -> str:
        return "—" if value is None else f"{value:,}"

    def share(value: float | None) -> str:
        return "—" if value is None else f"{value:.1%}"

    cells = (
        row["split"],
        row["part"],
        count(row["rows"]),
        count(row["given"]),
        share(row["share"]),
        count(row["tokens"]),
        share(row["share_of_tokens"]),
    )
    told = "".join(f"<td>{escape(clean(text))}</td>" for text in cells)
    return f'<tr><th scope="row">{run_link(row["run"])}</th>{told}</tr>'
