"""What a source left out of its rows because it could not read them, as a finding of the gate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from alignlab.data.gate.finding import Finding
from alignlab.data.gate.limits import Limits
from alignlab.data.sources.source import left_out_of

SHOWN = 3  # reasons


def left_out(source: Any, splits: Iterable[str], limits: Limits | None = None) -> list[Finding]:
    """Return a finding for the rows that were left out of splits that were loaded.

    Splits that are cut from the same rows share it. It has no row numbers: such rows got none.
    """
    share = (limits or Limits()).left_out
    found: dict[tuple[object, ...], Finding] = {}
    for split in splits:
        losses = left_out_of(source, split)
        severity = share.severity(losses.count, losses.rows) if losses is not None else None
        if losses is None or severity is None:
            continue
        ordered = sorted(losses.why.items(), key=lambda item: (-item[1], item[0]))
        why = "; ".join(f"{count:,}: {reason}" for reason, count in ordered[:SHOWN])
        more = f"; and {len(ordered) - SHOWN} more reasons" if len(ordered) > SHOWN else ""
        finding = Finding(
            severity,
            "left_out",
            losses.count,
            (),
            f"Rows could not be read and were left out, {losses.count / losses.rows:.2%} of "
            f"{losses.rows:,} ({why}{more})",
            "Repair them, or raise the share that is allowed: gate.left_out.error.",
            tuple(place for place, _ in losses.first),
        )
        found.setdefault((finding.count, finding.message, finding.places), finding)
    return list(found.values())
