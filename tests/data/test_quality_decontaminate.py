from __future__ import annotations

import json
from pathlib import Path

import pytest
from quality_rows import passage, refined, rows, write

from alignlab.data.group import NONE, PromptGroup
from alignlab.data.quality.decontaminate import Decontaminate
from alignlab.data.quality.evaluation_sets import locate_set, read_set
from alignlab.errors import DataError

QUESTION = (
    "A farmer in Idaho keeps forty two goats and sells seventeen of them at the market on Friday; "
    "how many goats are left on the farm at the end of the week?"
)
SHORT = "Who wrote the novel Middlemarch?"  # five words: counts only as a whole prompt


def step(sets, **changes):
    values = {
        "held_out": (),
        "fields": {},
        "ngram": 13,
        "least": 8,
        "share": 0.0,
        "template_rows": 20,
        "near": 0.6,
        "near_ngram": 2,
        "permutations": 128,
        "seed": 1,
    }
    return Decontaminate(sets=sets, **{**values, **changes})


@pytest.fixture
def exam(tmp_path):
    lines = [{"question": q, "answer": "#### 25"} for q in (QUESTION, SHORT, passage(5))]
    return write(tmp_path / "exam.jsonl", lines)


def removed(groups, sets, **changes):
    kept, effect = step(sets, **changes).apply(groups)
    left = {group.id for group in kept}
    return [group.id for group in groups if group.id not in left], effect


PLANTED = {
    "verbatim": QUESTION,
    "casing": QUESTION.upper(),
    "punctuation": QUESTION.replace(";", " --").replace("?", "!!").replace(" ", "  "),
    "inside": f"{passage(1)} {QUESTION} {passage(2)}",
    "first half": " ".join(QUESTION.split()[:16]) + " " + passage(3),
    "every tenth word": " ".join(
        "something" if i % 10 == 9 else word for i, word in enumerate(QUESTION.split())
    ),
}


@pytest.mark.parametrize("level", PLANTED)
def test_planted_contamination_is_found(level, exam):
    groups = [*rows(passage(11), passage(12)), PromptGroup(PLANTED[level], (" 25",), id="planted")]
    gone, effect = removed(groups, {"exam": exam})
    assert gone == ["planted"]
    [(why, count)] = effect.why.items()
    assert (why, count) == ("near exam" if level == "every tenth word" else "contains exam", 1)
    assert "row" in effect.examples[0]["detail"] or "line 1" in effect.examples[0]["detail"]


def test_in_the_completion_too(exam):
    groups = [PromptGroup("Tell me a riddle.", ("Sure. " + QUESTION,), id="a")]
    assert removed(groups, {"exam": exam})[0] == ["a"]


def test_what_shares_no_run_and_no_pairs_of_words_stays(exam):
    reworded = "After a Friday sale of 17 animals, what remains of a herd that counted 42 in Idaho?"
    twelve = " ".join(QUESTION.split()[:12]) + " " + passage(4)  # one word less than a run
    groups = [PromptGroup(reworded, id="reworded"), PromptGroup(twelve, id="twelve")]
    assert removed(groups, {"exam": exam})[0] == []


def test_each_test_can_be_turned_off(exam):
    edited = PromptGroup(PLANTED["every tenth word"], id="edited")
    whole = PromptGroup(QUESTION, id="whole")
    assert removed([edited, whole], {"exam": exam}, near=None)[0] == ["whole"]


def test_short_texts_count_as_whole_prompts_only(exam):
    chat = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": SHORT.upper()})
    groups = [
        PromptGroup(SHORT, id="same"),
        PromptGroup(chat, id="chat"),
        PromptGroup(f"My teacher asked: {SHORT} I said Eliot.", id="inside"),
        PromptGroup("Sum?", ("#### 25",), id="answer"),  # a completion of the set, alone
    ]
    assert removed(groups, {"exam": exam})[0] == ["same", "chat"]


def test_texts_between_the_limits_count_by_all_their_words(tmp_path):
    nine = "how many goats are left on the farm today"
    exam = write(tmp_path / "e.jsonl", [{"prompt": nine}, {"prompt": "a b c d e f g h"}])
    groups = [
        PromptGroup(f"Say, {nine}? {passage(1)}", id="all nine"),
        PromptGroup(f"Say, {nine[:-6]} {passage(2)}", id="eight"),
    ]
    groups.append(PromptGroup(f"Spell: A B C D E F G H {passage(3)}", id="least"))
    assert removed(groups, {"e": exam})[0] == ["all nine", "least"]


def test_share_asks_for_more_than_one_run(exam):
    half = PromptGroup(PLANTED["first half"], id="half")  # 16 words: 4 of 20 runs
    assert len(QUESTION.split()) == 32
    assert removed([half], {"exam": exam}, share=0.2)[0] == ["half"]
    assert removed([half], {"exam": exam}, share=0.21)[0] == []


def test_a_set_s_own_template_tells_nothing(tmp_path):
    ask = "Read the following passage with care and then answer the question that comes after it"
    exam = write(tmp_path / "e.jsonl", [{"prompt": f"{ask}: {passage(i)}"} for i in range(6)])
    groups = [
        PromptGroup(f"{ask}: {passage(77)}", id="asked alike"),
        PromptGroup(f"{ask}: {passage(3)}", id="the fourth"),
    ]
    assert removed(groups, {"e": exam}, template_rows=5, near=None)[0] == ["the fourth"]
    assert len(removed(groups, {"e": exam}, template_rows=6, near=None)[0]) == 2


def test_held_out_splits_count_as_sets():
    groups = rows(passage(1), passage(2))
    kept, effect = step({}).apply_against(groups, {"test": rows(passage(2), prompt="other")})
    assert [group.id for group in kept] == ["0"]
    assert effect.why == {"contains split test": 1}
    assert effect.numbers == {"rows of split test": 1.0}


def test_multiple_choice_sets_are_read(tmp_path):
    hellaswag = {"ind": 1, "ctx": passage(1), "endings": [passage(2), passage(3)], "label": "1"}
    arc = {"question": passage(4), "choices": {"text": [passage(5)], "label": ["A"]}, "id": "x"}
    piqa = {"goal": passage(6), "sol1": passage(7), "sol2": passage(8), "label": 0}
    for number, row in enumerate((hellaswag, arc, piqa)):
        path = write(tmp_path / f"{number}.jsonl", [row, row])
        texts = [v for v in row.values() if isinstance(v, str) and len(v) > 9]
        for text in texts:
            assert removed([PromptGroup("p", (text,), id="x")], {"set": path})[0] == ["x"]
    assert read_set("arc", tmp_path / "1.jsonl")[0].completions == (passage(5),)


def test_other_files_by_their_fields(tmp_path):
    row = {"question_id": 81, "category": "writing", "stages": [passage(1), passage(2)]}
    path = write(tmp_path / "bench.jsonl", [row])
    with pytest.raises(DataError, match=r"Evaluation set 'bench'.*fields.bench=\[FIELD"):
        step({"bench": path}).apply(rows("a"))
    groups = rows(passage(2), passage(9))
    gone, _ = removed(groups, {"bench": path}, fields={"bench": ("stages",)})
    assert gone == ["0"]
    with pytest.raises(DataError, match="Did you mean 'stages'"):
        step({"bench": path}, fields={"bench": ("stage",)}).apply(groups)


def test_a_set_that_is_not_there_is_refused_when_planned(tmp_path, exam):
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        step({"exam": str(tmp_path / "gone.jsonl")}).fingerprint()
    with pytest.raises(DataError, match="Did you mean 'ifbench'"):
        locate_set("ifbensch", None)
    with pytest.raises(DataError, match="no set of that name in sets"):
        step({"exam": exam}, fields={"exams": ("a",)})
    with pytest.raises(DataError, match="least"):
        step({}, ngram=5)


def test_the_fingerprint_is_of_the_sets_content(tmp_path, exam):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(exam).read_text())
    base = step({"exam": exam}).fingerprint()
    assert step({"exam": str(copy)}).fingerprint() == base
    copy.write_text(json.dumps({"question": "new", "answer": "1"}))
    assert step({"exam": str(copy)}).fingerprint() != base
    assert step({"exam": exam}, ngram=12).fingerprint() != base


def test_ifbench_from_its_package(tmp_path, monkeypatch):
    package = tmp_path / "ifbench" / "data"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise ImportError('downloads things')")
    (package / "IFBench_test.jsonl").write_text(json.dumps({"key": "1", "prompt": passage(1)}))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert removed([PromptGroup(passage(1), id="x")], {"ifbench": None})[0] == ["x"]


@pytest.mark.slow
def test_gsm8k_train_holds_rows_of_the_test(shared_data):
    folder = shared_data / "gsm8k"
    data = refined(
        str(folder / "train.jsonl.gz"),
        "data.order=[decontaminate]",
        f"+data.steps.decontaminate.sets.gsm8k_test={folder / 'test.jsonl.gz'}",
        "data.steps.decontaminate.held_out=[]",
        "data.source.validation=0",
        "data.source.test=0",
    )
    assert 7460 <= len(data.load("sft")) < 7473
    [entry] = data.card()["splits"]["sft"]
    assert entry["numbers"] == {"rows of gsm8k_test": 700.0}
    assert any("train travels 360 miles" in e["text"].lower() for e in entry["examples"])


def test_groups_without_completions_pass(exam):
    assert step({"exam": exam}).apply([PromptGroup("hello there", (), NONE)])[0]
    assert step({"exam": exam}).apply([])[0] == []
