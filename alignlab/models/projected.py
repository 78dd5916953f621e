"""VeRA's adapters as views: peft's, with the random matrices kept for all of them."""

from __future__ import annotations

from typing import Any

from alignlab.models.adapters import AdapterBodies

PROJECTIONS = ("vera_A", "vera_B")


class ProjectedBodies(AdapterBodies):
    """Adapters of peft's VeRA; all of them use one pair of random matrices.

    A trap of peft is closed here: with every further adapter it begins a new table of random
    matrices, without those of the adapters before.
    """

    def _inject(self, key: str, config: Any) -> None:
        """Put a fresh adapter on the base, and give the others their random matrices back."""
        super()._inject(key, config)
        for projection in PROJECTIONS:
            table = getattr(self._peft.base_model, projection)
            for other in self._peft.peft_config:
                table[other] = table[key]
