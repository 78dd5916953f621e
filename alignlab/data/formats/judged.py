"""Formats of any number of answers to one prompt, with scores, ranks or thumbs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignlab.data.formats.fields import (
    ANSWERS,
    CONVERSATIONS,
    QUESTIONS,
    Row,
    assemble,
    first_of,
    flag_of,
    from_json,
    kind_of,
    number_of,
    plain,
    prompt_of,
    text_of,
)
from alignlab.data.formats.pairs import labelled_conversation
from alignlab.data.group import PromptGroup, Text, Verdict
from alignlab.errors import DataError, did_you_mean

COMPLETIONS = ("completions", "responses", "generations", "candidates", "answers")
SCORES = ("scores", "ratings", "rewards")
RANKS = ("ranks", "ranking")
OVERALL = ("helpfulness", "score", "rating", "reward")
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_TEXTS = ("response", "answer", "text", "completion", "content")
_TOTALS = ("fine-grained_score", "overall_score", "score", "rating", "pm_score")


def unpaired(row: Row) -> PromptGroup:
    """Read one answer and its thumb: label or kto_tag (true, 1, desirable, "thumbs up", ...)."""
    field = first_of(row, ("label", "kto_tag"))
    verdict = Verdict("thumbs", thumbs=(flag_of(row, field),))
    if first_of(row, CONVERSATIONS):
        return labelled_conversation(row, verdict)
    return assemble(prompt_of(row, QUESTIONS), [text_of(row, first_of(row, ANSWERS))], verdict)


def scored(row: Row) -> PromptGroup:
    """Read a prompt, completions and scores (higher is better), ranks (lower) or labels (bools)."""
    given = [name for name in (*SCORES, *RANKS, "labels") if row.get(name) is not None]
    if len(given) != 1:
        raise DataError(f"needs one of 'scores', 'ranks', 'labels'; it has {given or 'none'}.")
    field = first_of(row, COMPLETIONS)
    values, completions = row[given[0]], row[field]
    if not isinstance(completions, list) or not completions:
        raise DataError(f"'{field}' must be a list with at least one text or list of messages.")
    if not isinstance(values, list) or len(values) != len(completions):
        raise DataError(f"'{given[0]}' must be a list with one value per completion.")
    texts = [text_of({field: completion}, field) for completion in completions]
    return assemble(prompt_of(row), texts, _verdict(given[0], values))


def _verdict(field: str, values: Sequence[Any]) -> Verdict:
    if field == "labels":
        return Verdict("thumbs", thumbs=tuple(flag_of({field: v}, field) for v in values))
    numbers = [number_of(field, value) for value in values]
    if field in SCORES:
        return Verdict("scores", scores=tuple(numbers))
    order = sorted(set(numbers))
    return Verdict("ranking", ranks=tuple(order.index(n) for n in numbers))


def judged_completions(row: Row) -> PromptGroup:
    """Read completions as objects with text and rank, score or aspect ratings (UltraFeedback).

    With ratings of aspects (``annotations``) the score is their mean, over the aspects that every
    completion has a rating for; else it is fine-grained_score, overall_score, score,
    rating or pm_score.
    ``meta["attributes"]`` keeps all ratings of each completion.
    """
    field = first_of(row, COMPLETIONS)
    items = row[field]
    if not isinstance(items, list) or not items or not all(isinstance(i, dict) for i in items):
        raise DataError(f"'{field}' must be a list of objects, each with a text and its rating.")
    texts = [_text_of_item(f"'{field}', item {n}", item) for n, item in enumerate(items, 1)]
    meta: dict[str, Any] = {}
    if all(item.get("model") is not None for item in items):
        meta["models"] = [item["model"] for item in items]
    if all(item.get("rank") is not None for item in items):
        return assemble(prompt_of(row), texts, _verdict("ranks", [i["rank"] for i in items]), meta)
    ratings = [_ratings(item) for item in items]
    meta["attributes"] = ratings
    aspects = [a for a in ratings[0] if a not in _TOTALS and all(a in r for r in ratings)]
    total = next((t for t in _TOTALS if all(t in r for r in ratings)), None)
    if not aspects and total is None:
        raise DataError(f"'{field}': needs a rank, a score or annotations for every completion.")
    used = aspects or [str(total)]
    scores = tuple(sum(r[name] for name in used) / len(used) for r in ratings)
    return assemble(prompt_of(row), texts, Verdict("scores", scores=scores), meta)


def _text_of_item(where: str, item: Mapping[str, Any]) -> Text:
    field = first_of(item, _TEXTS)
    if not field:
        raise DataError(f"{where}: needs a text in one of {', '.join(_TEXTS)}.")
    return text_of(item, field)


def _ratings(item: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by name: every aspect that is rated (UltraFeedback writes N/A for none), totals."""
    found = {}
    marks = from_json(item.get("annotations")) or {}
    if not isinstance(marks, dict):
        raise DataError(
            f"'annotations' must be an object, aspect by aspect; it is {kind_of(marks)}."
        )
    for aspect, said in marks.items():
        rating = said.get("Rating") if isinstance(said, dict) else said
        if rating is not None and str(rating).strip().upper() != "N/A":
            found[aspect] = number_of(f"annotations.{aspect}", rating)
    totals = {t: number_of(t, item[t]) for t in _TOTALS if item.get(t) is not None}
    return found | totals


def attributes(row: Row) -> PromptGroup:
    """Read one answer and its ratings (HelpSteer): the score is the overall one of them.

    That is helpfulness, else score, rating or reward. Rows of one prompt are put together.
    """
    names = [n for n in (*ATTRIBUTES, *OVERALL[1:]) if row.get(n) is not None]
    ratings = {name: number_of(name, row[name]) for name in names}
    overall = first_of(row, OVERALL)
    if not overall:
        raise DataError(f"needs a number in one of {', '.join(OVERALL)}.")
    verdict = Verdict("scores", scores=(ratings[overall],))
    answer = text_of(row, first_of(row, ANSWERS))
    return assemble(prompt_of(row, QUESTIONS), [answer], verdict, {"attributes": [ratings]})


def reweigh(group: PromptGroup, weights: Mapping[str, float]) -> PromptGroup:
    """Return the group scored by the weighted sum of its attributes instead.

    Raises:
        DataError: the group has no attributes, or lacks one that is weighed.
    """
    rated = group.meta.get("attributes")
    if not rated:
        raise DataError(
            "weights are stated, but the rows have no ratings of attributes to weigh "
            "(formats attributes and judged_completions have)."
        )
    for name in weights:
        for number, ratings in enumerate(rated, 1):
            if name not in ratings:
                raise DataError(
                    f"completion {number} has no attribute '{name}'; it has {', '.join(ratings)}."
                    f"{did_you_mean(name, ratings)}"
                )
    scores = tuple(sum(w * r[name] for name, w in weights.items()) for r in rated)
    return replace(group, verdict=Verdict("scores", scores=scores))


def solutions(row: Row) -> PromptGroup:
    """Read a question and several {solution, is_correct} fields, a thumb for each."""
    found = {name: row[name] for name in solution_fields(row)}
    thumbs = tuple(flag_of(value, "is_correct") for value in found.values())
    texts = [plain(value, "solution") for value in found.values()]
    verdict = Verdict("thumbs", thumbs=thumbs)
    return assemble(prompt_of(row), texts, verdict, {"models": list(found)})


def steps(row: Row) -> PromptGroup:
    r"""Read one solution's steps with a label or score each: what a process reward learns from.

    Completion number i is the solution as far as the end of step i, the steps joined by line ends,
    and its verdict is that of step i. So the score of a step is read where the step ends.
    """
    given = [name for name in (*SCORES, "labels") if row.get(name) is not None]
    if len(given) != 1:
        raise DataError(f"needs one of 'scores', 'labels' for its steps; it has {given or 'none'}.")
    said, values = row["steps"], row[given[0]]
    if not isinstance(said, list) or not said:
        raise DataError("'steps' must be a list with at least one text.")
    if not isinstance(values, list) or len(values) != len(said):
        raise DataError(f"'{given[0]}' must be a list with one value per step.")
    texts = [plain({"steps": step}, "steps").rstrip("\n") for step in said]
    prefixes = ["\n".join(texts[: end + 1]) for end in range(len(texts))]
    return assemble(prompt_of(row), prefixes, _verdict(given[0], values))


def solution_fields(row: Row) -> tuple[str, ...]:
    """Return the fields that hold an object {solution, is_correct}."""
    return tuple(
        name
        for name, value in row.items()
        if isinstance(value, dict) and "solution" in value and "is_correct" in value
    )
