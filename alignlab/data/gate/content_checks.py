"""Checks of the text: empty completions, special tokens, seams, the prompts of a pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from alignlab.data.gate.check import Check, Found, RowCheck, found
from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.limits import Share
from alignlab.data.gate.tally import Tally
from alignlab.data.group import PromptGroup, Text


class NoRows(Check):
    """An empty split."""

    rows = 0

    def see(self, chunk: Chunk) -> None:
        """Count rows."""
        self.rows += len(chunk.groups)

    def findings(self) -> Iterator[Found]:
        """An error if there are none."""
        if not self.rows:
            advice = "Check data.limit, the shares, the file."
            yield Found("error", "no_rows", 0, (), "There are no rows", advice)


class Empty(Check):
    """Completions without a word, before truncation."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.empty, self.completions = Tally(), 0, 0

    def see(self, chunk: Chunk) -> None:
        """Count completions that are only white space."""
        blank = []
        for row, answers in enumerate(chunk.answer_texts):
            here = sum(not answer or answer.isspace() for answer in answers)
            self.completions += len(answers)
            if here:
                self.empty += here
                blank.append(row)
        self.tally.add(chunk.start, blank)

    def findings(self) -> Iterator[Found]:
        """One finding if their share is above the limit."""
        limit = self.facts.limits.empty_completion
        severity = limit.severity(self.empty, self.completions)
        if severity is not None:
            yield from found(
                severity,
                "empty_completion",
                self.tally,
                f"A completion is empty ({self.empty} of {self.completions}): it teaches to stop "
                "at once",
                "Drop these rows if that is not meant; check which field was read as completion.",
            )


class SpecialText(RowCheck):
    """Special tokens written in a text become control tokens.

    One BOS at the start of a prompt and one EOS at the end of a completion are what the tokenised
    form has anyway, so they are no finding.
    """

    code = "special_token_in_text"
    message = "A text contains a special token of the tokenizer, which ends or starts turns"
    advice = "Remove it from the text."

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.openings = sorted({mark[:1] for mark in facts.marks})  # hundreds of marks share few
        self.advice = f"Remove it from the text. Special tokens: {' '.join(facts.marks[:12])}"

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with a mark of the template in their text."""
        texts = zip(chunk.prompt_texts, chunk.answer_texts, strict=True)
        return [row for row, (prompt, answers) in enumerate(texts) if self._in(prompt, answers)]

    def _in(self, prompt: str, answers: list[str]) -> bool:
        texts = (prompt, *answers)
        if not any(opening in text for opening in self.openings for text in texts):
            return False
        tokenizer = self.facts.tokenizer
        prompt = prompt.removeprefix(tokenizer.bos_token or "")
        ends = [answer.rstrip().removesuffix(tokenizer.eos_token) for answer in answers]
        text = "\x00".join((prompt, *ends))
        return any(mark in text for mark in self.facts.marks)


class Seam(RowCheck):
    """Prompt and completion of plain text that run into each other without a space."""

    severity = "warning"
    code = "no_space_between"
    message = "Prompt and completion run into one word"
    advice = (
        "Begin completions with a space or end prompts with a line break; or data.style=messages."
    )

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows whose prompt ends and whose completion begins in a word."""
        if self.facts.sampled:
            return ()
        return [row for row, group in enumerate(chunk.groups) if _glued(group)]


class PromptInPair(RowCheck):
    """Completions of one prompt that answer different prompts.

    One side of a pair repeats the prompt and the other does not; or the two sides are dialogues
    whose user says different things before the answer that is judged.
    """

    code = "prompt_mismatch"
    message = "The completions of one prompt do not answer the same prompt"
    advice = "Give both sides one prompt: a field 'prompt', and only answers in the completions."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows whose completions begin with prompts of their own that differ."""
        rows = enumerate(zip(chunk.groups, chunk.repeats, strict=True))
        return [row for row, (group, repeats) in rows if _mismatched(group, repeats)]

    def limit(self) -> Share:
        """A few such rows are noise, many are a field that was misread."""
        return self.facts.limits.prompt_mismatch


class PromptRepeated(RowCheck):
    """Completions that all begin with the whole prompt again."""

    severity = "warning"
    code = "prompt_in_completion"
    message = "The completions begin with the prompt again: it would be a target"
    advice = "Leave the prompt out of the completions."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows whose completions all repeat the prompt."""
        return [row for row, repeats in enumerate(chunk.repeats) if repeats and all(repeats)]


class SameCompletions(Check):
    """Pairs whose two sides are the same tokens: their loss is a constant."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tally, self.rows, self.only_cut = Tally(), 0, 0

    def see(self, chunk: Chunk) -> None:
        """Compare the tokens of every better and worse completion."""
        self.rows += len(chunk.tokens)
        keys, first = chunk.completion_keys.tolist(), chunk.first.tolist()
        same = []
        for row, tokens in enumerate(chunk.tokens):
            own = keys[first[row] : first[row + 1]]
            if len(set(own)) == len(own):
                continue
            pairs = [(i, j) for i, j in tokens.verdict.pairs() if own[i] == own[j]]
            if pairs:
                same.append(row)
                texts = chunk.groups[row].completions
                self.only_cut += all(texts[i] != texts[j] for i, j in pairs)
        self.tally.add(chunk.start, same)

    def findings(self) -> Iterator[Found]:
        """One finding; says how many rows differ before truncation."""
        limit: Share = self.facts.limits.chosen_is_rejected
        severity = limit.severity(self.tally.count, self.rows)
        if severity is not None:
            after = f" ({self.only_cut} only after truncation)" if self.only_cut else ""
            yield from found(
                severity,
                "chosen_is_rejected",
                self.tally,
                f"A better and a worse completion are the same tokens{after}",
                "Drop these rows, or raise max_completion if they differ only further on.",
            )


def _glued(group: PromptGroup) -> bool:
    prompt = group.prompt
    if not prompt or not isinstance(prompt, str) or not prompt[-1].isalnum():
        return False
    return any(str(c)[:1].isalnum() for c in group.completions)


def _mismatched(group: PromptGroup, repeats: Sequence[bool]) -> bool:
    if len(group.completions) < 2:
        return False
    if any(repeats) and not all(repeats):
        return True
    if not group.conversational:
        return False
    asked = {_asked(completion) for completion in group.completions}
    return len(asked) > 1


def _asked(completion: Text) -> tuple[str, ...]:
    """What users say inside a completion, before its last message."""
    if isinstance(completion, str) or len(completion) < 2:
        return ()
    return tuple(str(m.get("content")) for m in completion[:-1] if m["role"] == "user")
