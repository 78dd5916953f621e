"""What the reward–KL plane says, in sentences of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from alignlab.report.comparison import LEVEL
from alignlab.report.frontier.model import AreaPair, Curve, Plane
from alignlab.report.statistics import Interval
from alignlab.report.verdict import between, digits_for, p_text, plain, signed

SURE = 0.95  # share of draws from which on a peak is said to be there, or not to be


def sentences(plane: Plane) -> list[str]:
    """The comparison at equal KL, then the peak of every sweep."""
    return [*comparison(plane), *peaks_of(plane)]


def peaks_of(plane: Plane) -> list[str]:
    """One sentence on over-optimisation per sweep."""
    return [text for curve in plane.curves if (text := over_optimisation(curve))]


def number(found: Interval, *, sign: bool = False) -> str:
    """A number with its interval, as precise as its error allows."""
    digits = max(2, digits_for(found.error))
    write = signed if sign else plain
    return f"{write(found.value, digits)} {between(found, digits, sign=sign)}"


def nats(value: float) -> str:
    """A KL for people: ``12``, ``2.4``, ``0.31``."""
    return plain(value, 0 if value >= 10 else 1 if value >= 1 else 2)


def comparison(plane: Plane) -> list[str]:
    """Which swept family is best at equal KL, and from which others it can be told."""
    reached = [(a.curve.family, a.mean) for a in plane.areas if a.mean is not None]
    if plane.top is None or len(reached) < 2:
        return []
    (best, mean), others = reached[0], [name for name, _ in reached[1:]]
    found = [
        f"At equal KL, averaged over √KL up to {nats(plane.top)} nats, {best} has the highest gold "
        f"reward: {number(mean)}."
    ]
    pairs = {name: _pair(plane, best, name) for name in others}
    clear = [name for name in others if pairs[name][0].holm < 1 - LEVEL]
    equal = [name for name in others if name not in clear]
    for names, word in ((clear, "is above"), (equal, "cannot be told from")):
        if names:
            listed = [f"{name} ({_gap(*pairs[name])})" for name in names]
            found.append(f"It {word} {listing(listed)}.")
    if plane.short:
        verb = (
            "does not reach that KL and is" if len(plane.short) == 1 else "do not reach it and are"
        )
        found.append(f"{listing(plane.short)} {verb} left out of this.")
    return found


def _pair(plane: Plane, best: str, other: str) -> tuple[AreaPair, int]:
    pair = next(p for p in plane.pairs if {p.a, p.b} == {best, other})
    return pair, 1 if pair.a == best else -1


def _gap(pair: AreaPair, sign: int) -> str:
    p = p_text(pair.holm)
    return f"{number(turned(pair.mean, sign), sign=True)}, Holm-adjusted p {_equals(p)}"


def turned(found: Interval, sign: int) -> Interval:
    """An interval, or that of the difference the other way round."""
    if sign > 0:
        return found
    return Interval(-found.value, -found.high, -found.low, found.error, found.seeds, found.prompts)


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def listing(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def over_optimisation(curve: Curve) -> str:
    """Where gold peaks along a sweep and how far its settings go past that; "" without a fit."""
    fit = curve.fit
    if fit is None or curve.control:
        return ""
    last = curve.furthest
    reached = f"the largest tried ({nats(last.kl.value)} nats, {last.score.method.label})"
    if fit.humps < 1 - SURE:
        return (
            f"{curve.family}: gold still rises at the largest KL tried, {nats(last.kl.value)} nats."
        )
    if fit.humps < SURE or curve.past is None:
        return (
            f"{curve.family}: whether gold has peaked before the KL that is {reached} is not clear."
        )
    text = (
        f"{curve.family}: gold peaks at √KL = {number(fit.peak_d)}, a KL of "
        f"{nats(fit.peak_d.value**2)} nats, {number(fit.peak_r, sign=True)} over SFT"
    )
    past = f"; from there to {reached} it changes by {number(curve.past, sign=True)}"
    if curve.past.high < 0:
        past = f"; from there to {reached} it falls by {number(turned(curve.past, -1))}"
    if curve.proxy_past is not None and curve.proxy_past.low > 0:
        past += f", while proxy keeps rising ({number(curve.proxy_past, sign=True)})"
    return f"{text}{past}."
