"""What the mixtures of a plan give, part by part: counted where it takes no long reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from alignlab.commands.text import columns
from alignlab.data.quality.refined import Refined
from alignlab.data.sources.file import File
from alignlab.data.sources.mixture import Mixture
from alignlab.data.sources.reviews import Reviews
from alignlab.spec import Spec, build

if TYPE_CHECKING:
    from alignlab.plan import Plan

SPLITS = {
    "pretrain": "pretrain",
    "continued_pretrain": "pretrain",
    "sft": "sft",
    "annotate": "preference",
}  # kind of stage -> the training split that it reads
MOST_BYTES = 64 * 2**20  # of all files of a mixture that is counted while it is planned
HEADER = ("mixture", "part", "has", "gives", "share", "")


def mixtures(plan: Plan) -> str:
    """A table of every mixture that a stage of the plan reads; empty where there is none."""
    rows: list[tuple[str, ...]] = []
    later: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for node in plan.nodes.values():
        split, data = SPLITS.get(node.kind), getattr(node.stage, "data", None)
        if node.cached or split is None or not isinstance(data, Spec):
            continue
        if (mixture := _mixture(build(data))) is None:
            continue
        key = (mixture.fingerprint(), split)
        if key in seen:
            continue
        seen[key] = node.name
        if _quick(mixture):
            rows += _rows(mixture, split, node.name)
        else:
            later.append(node.name)
    told = [columns([HEADER, *rows], right=range(2, 5))] if rows else []
    if later:
        told.append(
            f"What the parts of the mixture give is counted when it runs: {', '.join(later)}."
        )
    return "".join(f"\n\n{part}" for part in told)


def _mixture(source: object) -> Mixture | None:
    """The mixture that a source is, or that it refines."""
    while isinstance(source, Refined):
        source = build(source.source)
    return source if isinstance(source, Mixture) else None


def _rows(mixture: Mixture, split: str, stage: str) -> Iterator[tuple[str, ...]]:
    told = mixture.told(split)
    by_length = any("given_characters" in one for one in told.values())
    unit, has = ("given_characters", "characters") if by_length else ("given", "rows")
    word = mixture.measure or "groups"
    total = sum(one[unit] for one in told.values())
    for name, one in told.items():
        share = one[unit] / total if total else 0.0
        shown = "" if one[unit] <= one[has] else f"each {one[unit] / one[has]:.2g} times"
        yield (stage, name, f"{one[has]:,}", f"{one[unit]:,} {word}", f"{share:.1%}", shown)
        stage = ""


def _quick(mixture: Mixture) -> bool:
    """Whether every part is packaged, or files on this machine that are not large."""
    total = 0
    for part in mixture.parts.values():
        source = build(part.source)
        if isinstance(source, Mixture):
            if not _quick(source):
                return False
        elif isinstance(source, File):
            size = source.bytes()
            if size is None:
                return False
            total += size
        elif not isinstance(source, Reviews):
            return False
    return total <= MOST_BYTES
