"""Checks of the roles in conversations: what templates refuse or write in a way nobody meant."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

from alignlab.data.gate.check import Check, Found, found
from alignlab.data.gate.chunk import Chunk, Facts
from alignlab.data.gate.finding import Severity
from alignlab.data.gate.tally import Tally
from alignlab.data.group import PromptGroup

KNOWN = frozenset({"system", "developer", "user", "assistant", "tool", "function", "ipython"})
Roles = tuple[str, ...]

PROBLEMS: dict[str, tuple[Severity, str, str]] = {
    "completion_role": (
        "error",
        "A completion does not begin with a turn of the assistant",
        "Move the turns before the answer into the prompt; check the names of the roles.",
    ),
    "unknown_role": (
        "warning",
        "A message has a role that no template knows",
        f"Use {', '.join(sorted(KNOWN))}.",
    ),
    "assistant_first": (
        "warning",
        "The assistant speaks before any user",
        "Many templates refuse that. Drop its greeting, or put it into the system message.",
    ),
    "system_inside": (
        "warning",
        "A system message stands after the beginning",
        "Many templates drop or refuse it. Put it first.",
    ),
    "two_users": (
        "warning",
        "Two turns of the user follow each other",
        "Join them, or look for the answer that is missing between them.",
    ),
    "two_assistants": (
        "warning",
        "Two turns of the assistant follow each other",
        "Join them, or look for the question that is missing between them.",
    ),
    "tool_without_call": (
        "warning",
        "A tool answers though nobody called it",
        "Give the assistant's message before it its tool_calls.",
    ),
}


class RoleOrder(Check):
    """Conversations whose turns are not in order."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(facts)
        self.tallies = {code: Tally() for code in PROBLEMS}

    def see(self, chunk: Chunk) -> None:
        """Look at the roles of every conversation."""
        rows: dict[str, list[int]] = {code: [] for code in PROBLEMS}
        for row, group in enumerate(chunk.groups):
            if group.conversational:
                for code in _problems_of(group):
                    rows[code].append(row)
        for code, shown in rows.items():
            self.tallies[code].add(chunk.start, shown)

    def findings(self) -> Iterator[Found]:
        """One finding for each kind of disorder."""
        for code, (severity, message, advice) in PROBLEMS.items():
            yield from found(severity, code, self.tallies[code], message, advice)


def _problems_of(group: PromptGroup) -> frozenset[str]:
    prompt = _roles(group.prompt)
    if not group.completions:
        return problems(prompt, ())
    each = [problems(prompt, _roles(completion)) for completion in group.completions]
    return frozenset().union(*each)


def _roles(messages: object) -> Roles:
    if isinstance(messages, str):
        return ("assistant",)  # a text beside messages is the assistant's
    assert isinstance(messages, tuple)
    return tuple(
        "assistant+call" if m["role"] == "assistant" and m.get("tool_calls") else m["role"]
        for m in messages
    )


@lru_cache(maxsize=4096)
def problems(prompt: Roles, completion: Roles) -> frozenset[str]:
    """Codes of `PROBLEMS` that the roles of one conversation show."""
    roles = prompt + completion
    plain = [role.removesuffix("+call") for role in roles]
    talk = [role for role in plain if role not in ("system", "developer")]
    shown = set()
    if completion and completion[0].removesuffix("+call") != "assistant":
        shown.add("completion_role")
    if not KNOWN.issuperset(plain):
        shown.add("unknown_role")
    if talk and talk[0] == "assistant" and len(prompt) > 0:
        shown.add("assistant_first")
    if any(role in ("system", "developer") for role in plain[1:]) and not _opens(plain):
        shown.add("system_inside")
    for before, after in pairwise(roles):
        if before == after == "user":
            shown.add("two_users")
        if before == "assistant" and after.startswith("assistant"):
            shown.add("two_assistants")
        if after == "tool" and before not in ("tool", "assistant+call"):
            shown.add("tool_without_call")
    return frozenset(shown)


def _opens(roles: list[str]) -> bool:
    """Whether all system messages stand at the beginning."""
    last = max(i for i, role in enumerate(roles) if role in ("system", "developer"))
    return all(role in ("system", "developer") for role in roles[:last])
