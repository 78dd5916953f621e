"""The gate before pretraining: texts are looked at before there is a tokenizer."""

from __future__ import annotations

from alignlab.data.gate.gate import Limits
from alignlab.data.gate.texts import check_texts
from alignlab.data.group import DEMONSTRATION, PromptGroup


def texts(*given: str) -> list[PromptGroup]:
    return [
        PromptGroup("", (text,), DEMONSTRATION, f"id{i}", {"place": f"a.txt, line {i + 1}"})
        for i, text in enumerate(given)
    ]


def found(groups, held_out=()) -> dict[str, tuple[str, int, tuple[int, ...]]]:
    findings = check_texts(groups, {"pretrain_validation": texts(*held_out)}, Limits())
    return {f.code: (f.severity, f.count, f.rows) for f in findings}


CLEAN = tuple(f"The film number {i} was good, and {i * 7} people saw it." for i in range(30))


def test_clean_texts_have_no_finding():
    assert found(texts(*CLEAN), ["Another film altogether."]) == {}
    assert list(found([])) == ["no_rows"]


def test_each_fault_is_found_with_its_row():
    assert found(texts(*CLEAN, "half \ud83d of it")) == {"invalid_unicode": ("error", 1, (30,))}
    assert found(texts(*CLEAN, CLEAN[3])) == {"repeated_row": ("warning", 1, (30,))}
    assert found(texts(*CLEAN, " \n")) == {"empty_completion": ("warning", 1, (30,))}
    assert found(texts("", " "))["empty_completion"] == ("error", 2, (0, 1))
    assert found(texts(*CLEAN, "cafÃ© and itâ€™s good")) == {"mojibake": ("warning", 1, (30,))}
    long = "one of many words " * 100
    assert found(texts(*CLEAN, long)) == {"length_outlier": ("warning", 1, (30,))}


def test_held_out_texts_may_not_be_trained_on():
    leaks = found(texts(*CLEAN), ["the FILM number 4 was good,  and 28 people saw it."])
    assert leaks == {"prompt_in_two_splits": ("error", 1, (4,))}
    near = found(texts(*CLEAN), ["The film number 4 was good and 28 people saw it!"])
    assert near == {"near_prompt_in_two_splits": ("warning", 1, (4,))}
    [finding] = check_texts(texts(*CLEAN), {"pretrain_validation": texts(CLEAN[9])}, Limits())
    assert finding.counted() == "1 row: a.txt, line 10"
