"""The answer in a few sentences, and how numbers are written everywhere in the report."""

from __future__ import annotations

import math
from dataclasses import replace

from alignlab.report.analysis import LEVEL, Analysis, Pair, Score, hacks_gold
from alignlab.report.statistics import Interval

MINUS = "−"
NAMED = 5  # methods that a sentence lists


def digits_for(error: float) -> int:
    """Decimals worth printing for a number with this standard error (two of its digits, 1 to 4)."""
    return 2 if error <= 0 else min(4, max(1, math.ceil(-math.log10(error))))


def plain(value: float, digits: int = 2) -> str:
    """A number with a real minus sign; a dash when there is none."""
    if not math.isfinite(value):
        return "—"
    text = f"{abs(value):.{digits}f}"
    return text if value >= 0 or float(text) == 0 else MINUS + text


def signed(value: float, digits: int = 2) -> str:
    """A number that always shows its sign."""
    text = plain(value, digits)
    return text if text.startswith((MINUS, "—")) else f"+{text}"


def between(interval: Interval, digits: int = 2, *, sign: bool = False) -> str:
    """``[low, high]``."""
    write = signed if sign else plain
    return f"[{write(interval.low, digits)}, {write(interval.high, digits)}]"


def p_text(p: float | None) -> str:
    """A p value as it should be read: no more than it can bear."""
    if p is None:
        return "—"
    return "< 0.01" if p < 0.01 else f"{p:.2f}"


def amount(value: float | None, *, unit: str = "") -> str:
    """Large counts for people: ``1.2 M``."""
    if value is None or not math.isfinite(value):
        return "—"
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip() if value else "0"


def seconds_text(value: float | None) -> str:
    """Seconds, minutes or hours."""
    if value is None or not math.isfinite(value):
        return "—"
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def memory_text(value: float | None) -> str:
    """Bytes as MiB or GiB."""
    if value is None or not math.isfinite(value):
        return "—"
    mebibytes = value / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def gold_digits(analysis: Analysis) -> int:
    """Decimals for every gold number of the report."""
    errors = sorted(s.metrics["gold"].error for s in analysis.scores)
    return max(2, digits_for(errors[len(errors) // 2])) if errors else 2


def verdict(analysis: Analysis) -> list[str]:
    """The answer: sentences of plain text, the first one the headline."""
    ranked = analysis.trained
    if not ranked:
        return [
            "No trained policy of this study has been evaluated yet, so there is nothing to rank."
        ]
    best, digits = ranked[0], gold_digits(analysis)
    sentences = [_headline(analysis, best, digits), *_rivals(analysis, best, digits)]
    if hacks_gold(best):
        sentences.append(
            "Caution: the audit reward, which no stage sees, does not rise with "
            f"{best.method.label}; its gain may be an exploit of the gold reward."
        )
    if best.method.failed:
        tried = len(best.method.seeds) + len(best.method.failed)
        sentences.append(
            f"Caution: {len(best.method.failed)} of {tried} seeds of {best.method.label} failed; "
            "its numbers are conditional on the seeds that finished."
        )
    sentences += _controls(analysis, digits)
    if analysis.detectable is not None:
        sentences.append(
            "The smallest difference this study could have seen is about "
            f"{plain(analysis.detectable, digits)} (80 % power, one comparison at 5 %)."
        )
    return sentences


def _headline(analysis: Analysis, best: Score, digits: int) -> str:
    gold, over = best.metrics["gold"], best.over_sft.get("gold")
    equal = [s.method.label for s in analysis.trained if s.value("gold") == gold.value]
    among = "the trained methods"
    if analysis.equal_kl is not None:  # of a sweep, one setting per family
        among = f"the settings compared near a KL of {analysis.equal_kl:.2g} nats"
        if all(score.method.selection for score in analysis.trained):
            among = "the tuned methods"
    claim = f"{best.method.label} has the highest gold reward of {among}"
    if len(equal) > 1:
        claim = (
            f"{', '.join(equal[:-1])} and {equal[-1]} have exactly the same, highest gold reward"
        )
    seeds = f"{len(analysis.seeds)} training seed{'s' * (len(analysis.seeds) > 1)}"
    text = (
        f"On {analysis.prompts} held-out prompts × {seeds}, {claim}: "
        f"{plain(gold.value, digits)} {between(gold, digits)}"
    )
    if over is None:
        return text + " (the reference itself was not evaluated)."
    gain = f"{signed(over.value, digits)} {between(over, digits, sign=True)}"
    return f"{text}, {gain} over {analysis.base_name}."


def _name(pair: Pair, best: Score) -> str:
    return pair.b.label if pair.a.id == best.method.id else pair.a.label


def _rivals(analysis: Analysis, best: Score, digits: int) -> list[str]:
    """Whether the best is distinguishable from SFT and from the next, and from whom it is not."""
    text = []
    own = analysis.pair(best.method.id, analysis.baseline.method.id) if analysis.baseline else None
    if own is not None and not own[0].distinguishable:
        p = _equals(p_text(own[0].holm))
        text.append(
            f"It is not distinguishable from {analysis.base_name} itself (Holm-adjusted p {p})."
        )
    elif own is not None and own[0].gold.interval.value * own[1] < 0:
        text.append(f"Every trained method scores below {analysis.base_name}.")
    compared = [analysis.pair(best.method.id, s.method.id) for s in analysis.trained[1:]]
    found = [pair for pair in compared if pair is not None]
    if not found:
        return text
    following, sign = found[0]
    others = [_name(pair, best) for pair, _ in found[1:] if not pair.distinguishable]
    clear = following.distinguishable
    link = ", but not from " if clear else ", nor from "
    text.append(
        f"It {'is' if clear else 'is not'} distinguishable from {_name(following, best)}, "
        f"the next one ({_difference(following, sign, digits)})"
        + (link + _listing(others) if others else "")
        + "."
    )
    return text


def _difference(pair: Pair, sign: int, digits: int) -> str:
    """Difference with its interval and p; says so where prompts and seeds disagree."""
    found = pair.gold.interval
    ends = sorted((sign * found.low, sign * found.high))
    turned = replace(found, value=sign * found.value, low=ends[0], high=ends[1])
    text = (
        f"{signed(turned.value, digits)} {between(turned, digits, sign=True)}, "
        f"Holm-adjusted p {_equals(p_text(pair.holm))}"
    )
    if pair.holm < 1 - LEVEL and not turned.excludes(0.0):
        text += " over prompts, but the interval over seeds includes 0"
    return text


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"= {p}"


def _listing(names: list[str]) -> str:
    if len(names) > NAMED + 1:
        return f"{', '.join(names[:NAMED])} or {len(names) - NAMED} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _controls(analysis: Analysis, digits: int) -> list[str]:
    text = []
    for score in analysis.compared:
        if score.method.best_of > 1:
            gold = score.metrics["gold"]
            reached = f"{plain(gold.value, digits)} {between(gold, digits)}"
            text.append(
                f"Control: {score.method.label}, which trains nothing and samples "
                f"{score.method.best_of} times, reaches {reached}."
            )
    return text
