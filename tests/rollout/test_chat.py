"""A conversation with a two-layer model: what it is given, and what it says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.models.load import resolve
from alignlab.rollout.chat import Chat, talk

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve("random:tiny", tmp_path_factory.mktemp("cache"))


def chat(folder: Path, template: str | None = None, **given: float) -> Chat:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    settings = {"temperature": 1.0, "top_p": 1.0, "seed": 0, **given}
    return Chat(
        AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer, max_tokens=8, **settings
    )


def test_the_same_seed_says_the_same(folder: Path) -> None:
    answers = ["".join(chat(folder, seed=seed).answer("a film")) for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    greedy = ["".join(chat(folder, temperature=0.0, seed=s).answer("a film")) for s in (1, 2)]
    assert greedy[0] == greedy[1]


def test_a_conversation_remembers(folder: Path) -> None:
    talking = chat(folder, TEMPLATE)
    first = "".join(talking.answer("hello"))
    assert talking.messages == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
    ]
    shown = talking._inputs("more")["input_ids"][0]
    text = talking.tokenizer.decode(shown, skip_special_tokens=True)
    assert text.endswith("<user>more<assistant>")
    assert "<user>hello<assistant>" in text
    talking.reset()
    assert talking.messages == []


def test_talk_reads_until_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["", "a film", "/reset", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    out = io.StringIO()
    talking = chat(folder)
    assert talk(lambda name: talking, {"sft-1234": "sft-1234 (SFT)"}, out) == 0
    assert out.getvalue().startswith("sft-1234 (SFT): no chat template")
    assert next(lines, None) is None


def test_talk_goes_from_one_policy_to_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    chats = {name: chat(folder, TEMPLATE, temperature=0.0) for name in ("one", "two")}

    def turn(name: str) -> Chat:
        asked.append(name)
        return chats[name]

    lines = iter(["hello", "/use tow", "/use two", "again", "/use one"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines, None) or _end())
    out = io.StringIO()
    assert talk(turn, {"one": "first", "two": "second"}, out) == 0
    assert asked == ["one", "two", "one"]
    assert "Did you mean 'two'" in out.getvalue()
    # each remembers its own conversation
    assert [len(c.messages) for c in chats.values()] == [2, 2]


def _end() -> str:
    raise EOFError


def test_an_error_while_generating_is_not_swallowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = chat(folder)

    def broken(**_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(talking.model, "generate", broken)
    with pytest.raises(RuntimeError, match="no memory"):
        list(talking.answer("a film"))
