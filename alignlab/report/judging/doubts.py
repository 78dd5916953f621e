"""What could be wrong with a judge: found from its replies, said in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from alignlab.report.concern import Concern, note, serious, some
from alignlab.report.judging.numbers import Bench, Judged

CONSISTENT = 0.6  # a judge that decides by a coin and never ties agrees with itself on half
FEW = 30  # matches with a winner
BIAS = 0.6  # share of winners that were shown first
VERBOSE = 0.1  # share of matches that a text's verbose copy may win
LEAVES_OPEN = 0.05  # share of matches without a verdict
REPEATS = 0.9
AGREES = 0.1  # Cohen's kappa; up to 0.2 is what Landis and Koch (1977) call slight
OVERLAP = 0.05


def doubts(benches: Sequence[Bench]) -> list[Concern]:
    """All doubts about the judges of a study."""
    return [concern for bench in benches for concern in _of(bench)]


def _of(bench: Bench) -> Iterator[Concern]:
    name = bench.judge
    if bench.trained_on:
        runs = sorted(set(bench.trained_on.values()))
        text = f"{name} had a part in training {some(list(bench.trained_on))} (by {some(runs)})"
        yield serious("judge is the teacher", f"{text}: it cannot tell whether they exploit it")
    if bench.consistency is not None and bench.consistency < CONSISTENT:
        text = f"{name} gives the same verdict in both orders for {bench.consistency:.0%} of the"
        why = "all other matches count as ties, and win rates lie near one half whatever is true"
        yield serious("inconsistent judge", f"{text} matches; {why}")
    if bench.first is not None and (bench.first.low > BIAS or bench.first.high < 1 - BIAS):
        side, share = ("first", bench.first.value)
        if share < 0.5:
            side, share = "second", 1 - share
        text = f"{share:.0%} of the winners that {name} names are the answer shown {side}"
        yield note("position bias", f"{text}; both orders are asked, so it costs power, not truth")
    if bench.kappa is not None and bench.kappa < AGREES:
        text = f"{name} agrees with the gold reward hardly more than chance (κ = {bench.kappa:.2f})"
        yield note(
            "judge and gold disagree", f"{text}: one of them measures something else, or noise"
        )
    yield from _sentinels(bench)
    if bench.repeat_agreement is not None and bench.repeat_agreement < REPEATS:
        text = f"{name} repeats itself on {bench.repeat_agreement:.0%} of the questions asked twice"
        yield note("judge varies", text)
    for one in bench.judged:
        yield from _method(bench, one)


def _sentinels(bench: Bench) -> Iterator[Concern]:
    name, wins, losses = bench.judge, bench.verbose_wins, bench.verbose_losses
    if wins is not None and wins > VERBOSE and wins > (losses or 0.0):
        text = f"{name} prefers a text said twice to the text itself in {wins:.0%} of the matches"
        why = f"and the text itself in {losses or 0.0:.0%}: it rewards repetition or length"
        yield serious("verbose copy wins", f"{text}, {why}")
    named = (bench.identical_first or 0.0) + (bench.identical_second or 0.0)
    if bench.identical_ties is not None and named > 0.5:
        text = f"of two identical texts {name} names one as better in {named:.0%} of the cases"
        yield note(
            "equal texts do not tie", f"{text} (the first shown: {bench.identical_first:.0%})"
        )


def _method(bench: Bench, one: Judged) -> Iterator[Concern]:
    where = f"{one.method.label} against {bench.opponent} by {bench.judge}"
    if one.is_opponent:
        return
    if one.decided < FEW:
        text = f"{where}: {one.decided} of {one.matches} matches have a winner"
        yield note("few decided", f"{text}; the win rate rests on them alone")
    if one.no_verdict > LEAVES_OPEN * one.matches:
        text = f"{where}: {one.no_verdict} of {one.matches} matches got no verdict"
        yield serious("no verdict", f"{text} and are left out, which need not be by chance")
    if one.overlap < OVERLAP and one.tokens.error > 0:
        text = f"{where}: nearly every completion is {_longer(one)} than its opponent"
        yield note("lengths do not overlap", f"{text}, so equal length is extrapolated")


def _longer(one: Judged) -> str:
    return "longer" if one.tokens.value > 0 else "shorter"
