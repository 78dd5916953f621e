"""Selection under a budget: a small training set that is good and diverse.

LIMA (Zhou et al. 2023, arXiv:2305.11206) trains on 1,000 prompts and answers that were picked for
quality and for the diversity of their prompts, from several sources, and finds that both matter
more than the number of rows. `Select` does what can be automated of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from alignlab.data.group import PromptGroup
from alignlab.data.quality.judgements import apportion
from alignlab.data.quality.step import Reason, Step, StepEffect, effect
from alignlab.data.quality.texts import Scope, scoped
from alignlab.data.quality.vectors import facility_location, k_center, ranks, vectors
from alignlab.run import content_key
from alignlab.spec import Spec, build
from alignlab.typed import Range

_METHODS = {"k_center": k_center, "facility_location": facility_location}


@dataclass(frozen=True, kw_only=True)
class Select(Step):
    """Keeps ``budget`` rows that are good by ``quality`` and unlike each other.

    Quality counts as a rank among the rows of a stratum, so its unit does not matter. The choice is
    the same on every run; among equally good choices the earlier row wins. Rows keep their order.
    """

    budget: Annotated[int, Range(min=1)]  # rows to keep
    quality: Spec  # what makes a row good: a score of `alignlab.data.quality.scores`
    method: Literal["k_center", "facility_location"]  # unlike each other, or typical of the rest
    diversity: Annotated[float, Range(min=0, max=1)]  # its weight against quality; 0 = quality only
    scope: Scope  # which texts have to be diverse; LIMA means the prompts
    dimensions: Annotated[int, Range(min=16)]  # of the hashed TF-IDF vectors
    pool: Annotated[int, Range(min=1)]  # rows of a stratum that are looked at: its best by quality
    strata: str | None  # field of the data, such as the source; null = one stratum
    shares: Literal["proportional", "equal"]  # of the budget between the strata

    def fingerprint(self) -> str:
        """Hash of the fields and of the quality score's own code and data."""
        return content_key([super().fingerprint(), build(self.quality).fingerprint()])

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the chosen rows."""
        rows = list(groups)
        scores = np.asarray(build(self.quality).score(rows), np.float64)
        names = [str(row.meta.get(self.strata)) if self.strata else "all rows" for row in rows]
        counts = Counter(names)
        budgets = self._budgets(counts)
        chosen: set[int] = set()
        numbers: dict[str, float] = {}
        for name in sorted(counts):
            members = [i for i, stratum in enumerate(names) if stratum == name]
            picked = self._choose(rows, scores, members, budgets[name])
            chosen.update(picked)
            numbers[f"kept of {name}"] = float(len(picked))
        kept = [row for i, row in enumerate(rows) if i in chosen]
        if rows:
            numbers["mean_quality_before"] = round(float(scores.mean()), 4)
            numbers["mean_quality_after"] = round(float(scores[sorted(chosen)].mean()), 4)
        reason = Reason("not chosen")
        dropped = [(row, reason) for i, row in enumerate(rows) if i not in chosen]
        return kept, effect(self.name, len(rows), len(kept), dropped, numbers)

    def _budgets(self, counts: Counter[str]) -> dict[str, int]:
        total = min(self.budget, sum(counts.values()))
        if self.shares == "proportional":
            return apportion(total, dict(counts))
        given = dict.fromkeys(sorted(counts), 0)
        while total:  # a stratum that is used up leaves its share to the others
            open_ = [name for name in given if given[name] < counts[name]]
            share = max(1, total // len(open_))
            for name in open_:
                more = min(share, counts[name] - given[name], total)
                given[name] += more
                total -= more
        return given

    def _choose(
        self, rows: Sequence[PromptGroup], scores: np.ndarray, members: list[int], budget: int
    ) -> list[int]:
        """Numbers of the rows chosen from one stratum."""
        best_first = sorted(members, key=lambda i: (-scores[i], i))
        pool = sorted(best_first[: max(self.pool, budget)])
        quality = ranks(scores[pool])
        found = vectors([scoped(rows[i], self.scope) for i in pool], self.dimensions)
        picked = _METHODS[self.method](found, quality, budget, self.diversity)
        return [pool[k] for k in picked]
