"""Helpers of the gate's tests: groups in a line, tokens by hand, codes of what is found."""

from __future__ import annotations

from alignlab.data.gate.gate import Gate
from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup, Verdict
from alignlab.data.template import Tokenization


def pair(prompt, chosen, rejected, **more):
    return PromptGroup(prompt, (chosen, rejected), CHOSEN_REJECTED, **more)


def shown(prompt, answer, **more):
    return PromptGroup(prompt, (answer,), DEMONSTRATION, **more)


def thumb(prompt, answer, up):
    return PromptGroup(prompt, (answer,), Verdict("thumbs", thumbs=(up,)))


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def talk(*turns):
    """("user", "a", "assistant", "b") as messages."""
    return tuple(message(r, c) for r, c in zip(turns[::2], turns[1::2], strict=True))


def findings(groups, tokenizer, *, lengths=(256, 256), size=1000, change=None, **options):
    """What the gate finds in ``groups``, seen in chunks of ``size`` rows."""
    tokens = Tokenization(tokenizer, *lengths).groups(groups)
    if change:
        tokens = [change(token) for token in tokens]
    gate = Gate(tokenizer, **options)
    for start in range(0, len(groups), size):
        gate.see(groups[start : start + size], tokens[start : start + size])
    return gate.findings()


def by_code(found):
    """code -> (severity, rows)"""
    return {f.code: (f.severity, f.rows) for f in found}
