"""Which prompts are asked, and what stands before them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from alignlab.compose import compose
from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.errors import DataError
from alignlab.evaluation.items import FewShot, cut_warning, item_id, load
from alignlab.evaluation.policy import until
from alignlab.spec import parse


@dataclass
class Rows:
    groups: list[PromptGroup] = field(default_factory=list)

    def stream(self, split: str) -> Iterator[PromptGroup]:
        assert split == "sft"
        return iter(self.groups)


def shown(prompt: str, answer: str) -> PromptGroup:
    return PromptGroup(prompt, (answer,), DEMONSTRATION)


def few_shot(shots: int, question: str = "Q: {prompt}\nA:") -> FewShot:
    return FewShot(shots=shots, split="sft", question=question, answer=" {completion}")


def test_examples_stand_before_the_question() -> None:
    data = Rows([shown("one?", "1"), shown("two?", " 2 "), shown("three?", "3")])
    [group] = few_shot(2).apply([PromptGroup("four?")], data)
    assert group.prompt == "Q: one?\nA: 1\n\nQ: two?\nA: 2\n\nQ: four?\nA:"


def test_no_question_is_its_own_example() -> None:
    data = Rows([shown("Four?", "4"), shown("one?", "1")])
    [group] = few_shot(1).apply([PromptGroup("four?  ")], data)
    assert group.prompt == "Q: one?\nA: 1\n\nQ: four?\nA:"
    with pytest.raises(DataError, match="has only 1 answered"):
        few_shot(2).apply([PromptGroup("four?")], data)


def test_examples_in_a_conversation_are_turns() -> None:
    asked = PromptGroup(
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "four?"})
    )
    [group] = few_shot(1, "{prompt} Think.").apply([asked], Rows([shown("one?", "1")]))
    assert [m["role"] for m in group.prompt] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in group.prompt][1:] == ["one? Think.", "1", "four? Think."]


def test_without_examples_nothing_is_read() -> None:
    [group] = few_shot(0, "{prompt}").apply([PromptGroup("as it is\n\n")], data=None)
    assert group.prompt == "as it is\n\n"


@pytest.mark.parametrize("name", ["question", "answer"])
def test_a_frame_without_its_mark_is_refused(name: str) -> None:
    fields = {"question": "{prompt}", "answer": "{completion}", name: "nothing"}
    with pytest.raises(DataError, match=f"few_shot.{name}"):
        FewShot(shots=0, split="sft", **fields)


@pytest.mark.slow
def test_all_rows_of_a_file_whatever_it_is_called(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(30)))
    node = {**compose([f"data.path={path}"])["data"]}
    spec = parse(node, "data")
    _, groups = load(spec, "all", None, "t")
    assert {g.prompt for g in groups} == {f"p{n}" for n in range(30)}
    assert len(load(spec, "test", None, "t")[1]) < 30  # a share of them
    assert len(load(spec, "all", 4, "t")[1]) == 4
    with pytest.raises(DataError, match="name a split"):
        load(parse(compose(["data=reviews"])["data"], "data"), "all", None, "t")


def test_a_text_ends_at_the_first_stop() -> None:
    assert until("one\n\nQ: two", ["\n\nQ:", "two"]) == ("one", True)
    assert until("one two", ["\n", "wo", "one t"]) == ("", True)
    assert until("one", ["", "x"]) == ("one", False)


def test_names_of_items_and_what_is_said_of_cut_prompts() -> None:
    assert item_id(PromptGroup("x", id="abc"), 3) == "abc"
    assert item_id(PromptGroup("x"), 3) == "3"
    assert cut_warning("gsm8k", 0, 9) == []
    assert cut_warning("gsm8k", 2, 9) == [
        "gsm8k: 2 of 9 prompts did not fit and lost their beginning"
    ]
