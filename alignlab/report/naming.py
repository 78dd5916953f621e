"""Names of methods: which runs are points of one family, and what tells the points apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignlab.report.folders import SETTINGS, RunFolder, flatten, science, settings_of, show

SHOWN = 3  # settings in a name


@dataclass(frozen=True)
class Naming:
    """What a method is called: in tables, in full, as an id, and the family that it is of."""

    id: str
    label: str
    full_label: str
    family: str


def best_of(run: RunFolder) -> int:
    """Completions that an evaluation chose among, per sample."""
    return int(run.record.get("best_of") or 1)


class Lineage:
    """What a run was made from, whatever the seed: for telling methods apart."""

    def __init__(self, runs: Mapping[str, RunFolder]) -> None:
        self.runs = runs
        self._known: dict[str, Any] = {}

    def chosen(self, policy: RunFolder | None) -> RunFolder | None:
        """The trial behind a select run, else the run itself."""
        if policy is None or policy.kind != "select":
            return policy
        return self.runs.get(str(policy.record.get("chosen"))) or policy

    def of(self, name: str) -> Any:
        """Kind and configuration of a run and of all runs before it, without what a seed changes.

        The trials of a search are counted and not compared: seeds may choose different ones.
        """
        if name not in self._known:
            run = self.runs.get(name)
            self._known[name] = name.rsplit("-", 1)[0]  # against a circle in damaged records
            if run is not None and run.kind == "select":
                trials = len(run.record.get("trials") or ())
                found = [head_of(run.label), trials, run.record.get("metric")]
                self._known[name] = ["select", *found]
            elif run is not None:
                self._known[name] = [run.kind, science(run.config), self.before(run)]
        return self._known[name]

    def before(self, run: RunFolder | None) -> dict[str, Any]:
        """`of` every input of a run, by role."""
        return {role: self.of(name) for role, name in sorted(run.inputs.items())} if run else {}

    def fields(self, run: RunFolder | None) -> dict[str, Any]:
        """Flat configurations of all runs before ``run``, with the kind in front of each field."""
        found: dict[str, Any] = {}
        waiting = list(run.inputs.values()) if run else []
        seen: set[str] = set()
        while waiting:
            name = waiting.pop(0)
            source = self.runs.get(name)
            if name in seen or source is None:
                continue
            seen.add(name)
            found = {**flatten({source.kind: science(source.config)}), **found}
            waiting += source.inputs.values()
        return found


def text_of(value: Any) -> str:
    """A value in a form that equals itself only: what methods are compared by."""
    return json.dumps(value, sort_keys=True, default=str)


def label_of(run: RunFolder, policy: RunFolder | None) -> str:
    """Name of a method: the evaluation's label, which is the policy's unless somebody set it."""
    own = run.label if run.label.lower() != "evaluate" or policy is None else policy.label
    own = "SFT" if own.lower() == "sft" else own
    n = best_of(run)
    return own if n == 1 or "best" in own.lower() else f"best of {n} ({own})"


def head_of(label: str, n: int = 1) -> str:
    """Label without hyperparameters; ``mean`` and ``sum`` stay, the n of best-of-n does not."""
    if n > 1:
        return re.sub(r"\bbest of \d+\b", "best of n", label)
    head, _, inside = label.partition(" (")
    kept = re.search(r"\b(mean|sum)\b", inside)
    return f"{head} ({kept[0]})" if kept else head


def names(
    evaluations: Sequence[RunFolder], policies: Sequence[RunFolder | None], lineage: Lineage
) -> list[Naming]:
    """Name one method per evaluation, no two alike.

    Methods of one family share their label's head and all that they were made from, and differ in
    numbers alone: a sweep over β. Other differences make another family.
    """
    trained = [lineage.chosen(p) for p in policies]
    full = [label_of(r, p) for r, p in zip(evaluations, policies, strict=True)]
    heads = [head_of(x, best_of(r)) for x, r in zip(full, evaluations, strict=True)]
    own = [
        {
            **flatten(science(policy.config) if policy else {}),
            **{f"evaluate.{k}": v for k, v in flatten(science(run.config)).items()},
            **({"evaluate.best_of": best_of(run)} if best_of(run) > 1 else {}),
        }
        for run, policy in zip(evaluations, trained, strict=True)
    ]
    upstream = [lineage.fields(policy) for policy in trained]
    families = _families(heads, own, upstream)
    searched = [policy is not None and policy.kind == "select" for policy in policies]
    labels = _apart(families, [{**o, **u} for o, u in zip(own, upstream, strict=True)], searched)
    full = [
        text if full.count(text) == 1 else label for text, label in zip(full, labels, strict=True)
    ]
    labels = [
        text if n == 1 else f"best of {n}{family.removeprefix('best of n')}"
        for text, family, n in zip(labels, families, map(best_of, evaluations), strict=True)
    ]
    parts = zip(_slugs(labels), labels, full, families, strict=True)
    return [Naming(*part) for part in parts]


def _families(
    heads: Sequence[str],
    own: Sequence[Mapping[str, Any]],
    upstream: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Family of each method: its head, and where one head is not one family, what differs."""

    def kind(value: Any) -> Any:
        number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        return "number" if number else value

    marks = [
        {**{k: kind(v) for k, v in fields.items() if kind(v) != "number"}, **before}
        for fields, before in zip(own, upstream, strict=True)
    ]
    found = list(heads)
    for head in {h for h in heads if heads.count(h) > 1}:
        rows = [i for i, h in enumerate(heads) if h == head]
        differing = _differing([marks[i] for i in rows])
        for i in rows:
            found[i] = ", ".join([head, *_words(marks[i], differing)])
    return found


def _apart(
    families: Sequence[str], fields: Sequence[Mapping[str, Any]], searched: Sequence[bool]
) -> list[str]:
    """Add to the names of one family what differs between its members; ``tuned`` for a search."""
    named = list(families)
    for family in {x for x in families if families.count(x) > 1}:
        rows = [i for i, x in enumerate(families) if x == family]
        differing = _differing([fields[i] for i in rows if not searched[i]])
        for i in rows:
            words = ["tuned"] if searched[i] else _words(fields[i], differing)
            named[i] = ", ".join([family, *words])
    return named


def _differing(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(key for fields in flat for key in fields)
    return [key for key in keys if len({repr(f.get(key)) for f in flat}) > 1][:SHOWN]


def _words(fields: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """Settings in a name: ``β 0.1``, ``reward epochs 2``."""
    found = []
    for key in keys:
        kind, _, rest = key.partition(".")
        name = SETTINGS.get(key.replace(".arguments.", "."))
        if name is None:
            leaf = rest.rsplit(".", 1)[-1] or kind
            name = f"{kind} {leaf}" if kind in ("reward", "sft", "annotate") else leaf
        value = fields.get(key)
        found.append(f"{name} {'none' if value is None else show(value)}".strip())
    return found


def _slugs(labels: Sequence[str]) -> list[str]:
    found: list[str] = []
    for label in labels:
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower().replace("β", "beta")).strip("-")
        slug = slug or "method"
        count = sum(1 for f in found if f == slug or f.startswith(f"{slug}--"))
        found.append(slug if not count else f"{slug}--{count + 1}")
    return found


def settings_text(
    run: RunFolder, policies: Sequence[RunFolder | None], selects: Sequence[RunFolder | None]
) -> str:
    """Settings of a method over its seeds, and how they were found if they were searched for."""
    if best_of(run) > 1:
        return f"n = {best_of(run)}, ranked by the proxy"
    found = [settings_of(p.config).split(" · ") for p in policies if p is not None]
    if not found:
        return ""
    shared = [part for part in found[0] if all(part in other for other in found)]
    own = list(dict.fromkeys(" · ".join(x for x in f if x not in shared) for f in found))
    texts = [" · ".join(shared), " or ".join(x for x in own if x)]
    trials = [len(s.record.get("trials") or ()) for s in selects if s is not None]
    if trials:
        texts.append(f"chosen of {max(trials)} trials" + (", per seed" if len(own) > 1 else ""))
    return "; ".join(text for text in texts if text)
