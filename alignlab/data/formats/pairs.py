"""Formats of two answers to one prompt and the word which is better."""

from __future__ import annotations

from typing import Any

from alignlab.data.formats.calls import tools_of
from alignlab.data.formats.chat import messages_of
from alignlab.data.formats.demonstrations import conversation_of
from alignlab.data.formats.fields import (
    CONVERSATIONS,
    PROMPTS,
    Row,
    as_user,
    assemble,
    first_of,
    kind_of,
    number_of,
    plain,
    prompt_of,
    system_of,
    text_of,
    with_system,
)
from alignlab.data.group import CHOSEN_REJECTED, Message, PromptGroup, Text, Verdict
from alignlab.data.transcript import is_transcript, split_pair
from alignlab.errors import DataError

CHOSEN = ("chosen", "chosen_response", "response_j")
REJECTED = ("rejected", "rejected_response", "response_k")
SIDES = (
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("output_1", "output_2"),
    ("conversation_a", "conversation_b"),
)
FIRSTS = tuple(one for one, _ in SIDES)
# response_1 is the second of two where they are counted from 0, else the first.
SECONDS = ("response_b", "response_2", "response_1", "response2", "output_2", "conversation_b")
CHOICES = ("better_response_id", "overall_preference", "preference_strength", "preference")
_WINNERS = {"model_a": 0, "a": 0, "model_b": 1, "b": 1}


def preference(row: Row) -> PromptGroup:
    """Read prompt, chosen, rejected; without a prompt, what the two have in common is it.

    The answers are texts, messages, or one message each. Scores of the two stay in ``meta``: the
    label is the verdict, also where they are equal.
    """
    better, worse = first_of(row, CHOSEN), first_of(row, REJECTED)
    prompt, chosen, rejected = _pair(row, text_of(row, better), text_of(row, worse), better, worse)
    return assemble(prompt, [chosen, rejected], CHOSEN_REJECTED)


def rejected_response(row: Row) -> PromptGroup:
    """Read a conversation whose last answer was preferred, and the answer rejected for it."""
    turns = conversation_of(row)
    if turns[-1]["role"] != "assistant":
        raise DataError("the conversation must end with the answer that was preferred.")
    worse = text_of(row, "rejected_response")
    return assemble(turns[:-1], [turns[-1:], worse], CHOSEN_REJECTED)


def openai_preference(row: Row) -> PromptGroup:
    """Read OpenAI's input {messages, tools}, preferred_output and non_preferred_output."""
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise DataError("'input' must be an object with 'messages', and maybe 'tools'.")
    prompt = messages_of("input.messages", given["messages"])
    better = text_of(row, "preferred_output")
    worse = text_of(row, "non_preferred_output")
    group = assemble(prompt, [better, worse], CHOSEN_REJECTED)
    rest = {key: value for key, value in given.items() if key not in ("messages", "tools")}
    return PromptGroup(
        group.prompt, group.completions, group.verdict, meta=rest, tools=tools_of(given)
    )


def side_by_side(row: Row) -> PromptGroup:
    """Read two answers and which won, or a tie (Arena, PKU-SafeRLHF, AlpacaFarm, HelpSteer3)."""
    pairs = (pair for pair in SIDES if all(row.get(side) is not None for side in pair))
    one, two = next(pairs, ("", ""))
    if not one:
        raise DataError(f"needs two answers: {' or '.join(f'{a} and {b}' for a, b in SIDES)}.")
    winner = _winner(row)
    ranks = (0, 0) if winner is None else (winner, 1 - winner)
    pair = _pair(row, text_of(row, one), text_of(row, two), one, two)
    return assemble(pair[0], pair[1:], Verdict("ranking", ranks=ranks))


def _winner(row: Row) -> int | None:
    """0 = the first answer, 1 = the second, None = a tie."""
    if row.get("winner_model_a") is not None:
        votes = [number_of(f"winner_model_{s}", row.get(f"winner_model_{s}")) for s in "ab"]
        return None if votes[0] == votes[1] else int(votes[1] > votes[0])
    if row.get("winner") is not None:
        word = str(row["winner"]).strip().lower()
        if word in _WINNERS:
            return _WINNERS[word]
        if word.startswith("tie") or word in ("both", "neither", "equal"):
            return None
        raise DataError(f"'winner' must be model_a, model_b or tie, not {row['winner']!r:.60}.")
    if row.get("better_response_id") is not None:
        better = number_of("better_response_id", row["better_response_id"])
        if better not in (0, 1):
            raise DataError(f"'better_response_id' must be 0 or 1, not {better:g}.")
        return int(better)
    signed = first_of(row, ("overall_preference", "preference_strength"))
    if signed:
        wish = number_of(signed, row[signed])
        return None if wish == 0 else int(wish > 0)
    wish = number_of("preference", row["preference"])
    if not 1 <= wish <= 2:
        raise DataError(f"'preference' must lie between 1 (first) and 2 (second), not {wish:g}.")
    return None if wish == 1.5 else int(wish > 1.5)


def shp(row: Row) -> PromptGroup:
    """Read Stanford's human preferences: history, two comments, labels = 1 if A is better."""
    label = number_of("labels", row["labels"])
    if label not in (0, 1):
        raise DataError(f"'labels' must be 1 (A is better) or 0 (B is), not {label:g}.")
    texts = [plain(row, "human_ref_A"), plain(row, "human_ref_B")]
    ranks = (0, 1) if label == 1 else (1, 0)
    return assemble(plain(row, "history") + "\n\n", texts, Verdict("ranking", ranks=ranks))


def webgpt_comparisons(row: Row) -> PromptGroup:
    """Read OpenAI's WebGPT comparisons: a question, two answers, a score of each."""
    asked = row["question"]
    asked = asked.get("full_text") if isinstance(asked, dict) else asked
    if not isinstance(asked, str):
        raise DataError("'question' must be text, or an object with 'full_text'.")
    scores = tuple(number_of(f"score_{n}", row[f"score_{n}"]) for n in (0, 1))
    texts = [plain(row, "answer_0"), plain(row, "answer_1")]
    return assemble(asked + "\n\n", texts, Verdict("scores", scores=scores))


def summary_comparisons(row: Row) -> PromptGroup:
    """Read OpenAI's summaries with feedback: info on the post, two summaries, choice = 0 or 1."""
    info, summaries = row["info"], row["summaries"]
    if len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
        raise DataError("'summaries' must be two objects with 'text'.")
    texts = [plain(summary, "text") for summary in summaries]
    choice = number_of("choice", row["choice"])
    if choice not in (0, 1):
        raise DataError(f"'choice' must be 0 or 1, not {choice:g}.")
    body = info.get("post") or info.get("article")
    if not isinstance(body, str):
        raise DataError(f"'info' needs a 'post' or an 'article'; post is {kind_of(body)}.")
    head = {"SUBREDDIT": info.get("subreddit"), "TITLE": info.get("title")}
    parts = [
        f"{name}: {'r/' if name == 'SUBREDDIT' else ''}{value}"
        for name, value in head.items()
        if value
    ]
    prompt = "\n\n".join([*parts, f"POST: {body}", "TL;DR:"])
    ranks = (int(choice), 1 - int(choice))
    return assemble(prompt, texts, Verdict("ranking", ranks=ranks))


def _pair(
    row: Row, chosen: Text, rejected: Text, better: str, worse: str
) -> tuple[Text, Text, Text]:
    """The prompt and the two answers, the prompt cut off where both answers repeat it."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError(f"'{better}' and '{worse}' must both be text or both be messages.")
    if isinstance(chosen, tuple) and isinstance(rejected, tuple):
        whole = chosen[0]["role"] != "assistant"  # the answers hold their prompt
        prompt = None if whole and isinstance(row.get("prompt"), str) else _prompt(row, whole)
        if isinstance(prompt, str):
            prompt = as_user(prompt)
        head, one, two = _split_messages(prompt, chosen, rejected, better, worse)
        return with_system(row, head), one, two
    prompt = _prompt(row)
    if isinstance(prompt, tuple):
        return prompt, chosen, rejected
    if prompt is None and system_of(row):
        raise DataError("there is a system prompt but no prompt. Add a field 'prompt'.")
    return _split_text(prompt, str(chosen), str(rejected), better, worse)


def _prompt(row: Row, whole: bool = False) -> Text | None:
    names = (*PROMPTS, "input", "context")
    if first_of(row, names):
        return prompt_of(row, names)
    return conversation_of(row) if first_of(row, CONVERSATIONS) and not whole else None


def _split_text(
    prompt: str | None, chosen: str, rejected: str, better: str, worse: str
) -> tuple[str, str, str]:
    if prompt is not None:
        if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):
            return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
        return prompt, chosen, rejected
    if is_transcript(chosen) and is_transcript(rejected):
        return split_pair(chosen, rejected)
    same = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    end = max(chosen.rfind(space, 0, same) for space in " \n\t")  # never inside a word
    if end <= 0:
        raise DataError(
            f"'{better}' and '{worse}' begin differently and there is no 'prompt'. Add that field."
        )
    return chosen[:end], chosen[end:], rejected[end:]


def _split_messages(
    prompt: tuple[Message, ...] | None,
    chosen: tuple[Message, ...],
    rejected: tuple[Message, ...],
    better: str,
    worse: str,
) -> tuple[tuple[Message, ...], ...]:
    if prompt is not None:
        n = len(prompt)
        if chosen[:n] == prompt == rejected[:n] and len(chosen) > n < len(rejected):
            return prompt, chosen[n:], rejected[n:]
        return prompt, chosen, rejected
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    while same > 0 and chosen[same]["role"] != "assistant":
        same -= 1
    if same == 0:
        raise DataError(f"'{better}' and '{worse}' have no common prompt. Add a field 'prompt'.")
    return chosen[:same], chosen[same:], rejected[same:]


def labelled_conversation(row: Row, verdict: Verdict) -> PromptGroup:
    """Return a conversation whose last answer carries the verdict."""
    turns: Any = conversation_of(row)
    if turns[-1]["role"] != "assistant":
        raise DataError("the conversation must end with the answer that is judged.")
    return assemble(turns[:-1], [turns[-1:]], verdict)
