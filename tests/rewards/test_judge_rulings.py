"""Both orders, sentinels, memory: by hand, with judges whose taste is known."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from judge_cases import Taste, always_first, longer, prompt

from alignlab.errors import ConfigError
from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.judge import JudgeError, Question, Reply
from alignlab.rewards.judge.memory import Memory, question_key
from alignlab.rewards.judge.reward_judge import RewardJudge
from alignlab.rewards.judge.rulings import (
    Match,
    Ruling,
    consistency,
    repeated,
    rule,
    sentinels,
    spread,
    verbose,
)
from alignlab.spec import Spec

MATCHES = [Match("p", "long", "s"), Match("p", "s", "long"), Match("p", "aa", "bb")]


@pytest.mark.parametrize(
    ("forward", "backward", "win", "consistent", "mean"),
    [
        ("win", "win", 1.0, True, 1.0),
        ("loss", "loss", 0.0, True, 0.0),
        ("tie", "tie", 0.5, True, 0.5),
        ("win", "loss", 0.5, False, 0.5),
        ("win", "tie", 0.5, False, 0.75),
        ("tie", "loss", 0.5, False, 0.25),
        ("none", "win", None, False, 1.0),
        ("loss", "none", None, False, 0.0),
        ("none", "none", None, False, None),
    ],
)
def test_what_two_orders_come_to(forward, backward, win, consistent, mean):
    ruling = Ruling(forward, backward)
    assert (ruling.win, ruling.consistent, ruling.mean) == (win, consistent, mean)


def test_both_orders_are_asked_and_read_from_the_completion_s_side(tmp_path):
    judge = Taste(longer)
    found = rule(Asker(judge, tmp_path), MATCHES)
    assert [(r.forward, r.backward, r.win) for r in found] == [
        ("win", "win", 1.0),
        ("loss", "loss", 0.0),
        ("tie", "tie", 0.5),
    ]
    shown = {(q.first, q.second) for q in judge.asked}
    assert shown == {("long", "s"), ("s", "long"), ("aa", "bb"), ("bb", "aa")}
    assert consistency(found) == 1.0


def test_a_judge_of_positions_only_ties_and_is_never_consistent(tmp_path):
    found = rule(Asker(Taste(always_first), tmp_path), MATCHES)
    assert {(r.forward, r.backward) for r in found} == {("win", "loss")}
    assert {r.win for r in found} == {0.5}
    assert consistency(found) == 0.0


def test_equal_texts_tie_unasked(tmp_path):
    judge = Taste(always_first)
    [ruling] = rule(Asker(judge, tmp_path), [Match("p", "same", "same")])
    assert (ruling.win, ruling.asked, judge.asked) == (0.5, False, [])
    assert consistency([ruling]) is None


def test_what_was_said_is_not_asked_again(tmp_path):
    first = Asker(Taste(longer), tmp_path)
    rule(first, MATCHES)
    # Two of the three matches are the same two questions, in the other order.
    assert (first.questions, first.hits, first.calls, first.usd) == (6, 2, 4, 2.0)
    again = Taste(always_first)  # of the same name, so of the same memory
    asker = Asker(again, tmp_path)
    assert [r.win for r in rule(asker, MATCHES)] == [1.0, 0.0, 0.5]
    assert (again.asked, asker.hits, asker.calls, asker.usd) == ([], 6, 0, 0.0)
    other = Taste(always_first, name="another")
    assert [r.win for r in rule(Asker(other, tmp_path), MATCHES)] == [0.5, 0.5, 0.5]


def test_a_reply_without_verdict_is_asked_again_next_time(tmp_path):
    mute = Asker(Taste(lambda q: "none"), tmp_path)
    assert [r.win for r in rule(mute, MATCHES[:1])] == [None]
    assert mute.no_verdict == 2
    assert [r.win for r in rule(Asker(Taste(longer), tmp_path), MATCHES[:1])] == [1.0]


def test_replies_before_an_error_are_kept(tmp_path):
    def failing(question):
        if question.first == "s":
            raise JudgeError("enough")
        return "first"

    with pytest.raises(JudgeError, match="enough"):
        rule(Asker(Taste(failing), tmp_path), MATCHES)
    judge = Taste(longer)
    rule(Asker(judge, tmp_path), MATCHES[:1])
    assert [(q.first, q.second) for q in judge.asked] == [("s", "long")]


def test_memories_of_several_processes_are_one(tmp_path):
    one, two = Memory(tmp_path), Memory(tmp_path)
    question = Question("p", "a", "b")
    one.keep(question_key(question), Reply("first", "A", 3, 1, None, 1))
    two.keep("other", Reply("tie"))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2
    two.refresh()
    assert two.find(question_key(question)) == Reply("first", "A", 3, 1, None, 1)
    [mine] = [f for f in tmp_path.glob("*.jsonl") if "other" in f.read_text()]
    with mine.open("a") as file:
        file.write(json.dumps({"key": "torn", "side": "tie"})[:20])  # killed while writing
    third = Memory(tmp_path)
    third.refresh()
    assert third.find("torn") is None
    assert third.find("other").side == "tie"


WRITER = """
import sys
from pathlib import Path
from alignlab.rewards.judge.judge import Reply
from alignlab.rewards.judge.memory import Memory
memory = Memory(Path(sys.argv[1]))
for number in range(300):
    memory.keep(f"{sys.argv[2]}-{number}", Reply("first", "x" * 500))
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name]) for name in "abc"]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    memory = Memory(tmp_path)
    memory.refresh()
    found = [memory.find(f"{name}-{number}") for name in "abc" for number in range(300)]
    assert all(reply is not None and len(reply.said) == 500 for reply in found)


def test_every_part_of_a_question_is_in_its_key():
    base = Question("p", "a", "b", None)
    others = [
        Question("q", "a", "b"),
        Question("p", "b", "a"),
        Question("pa", "", "b"),
        Question("p", "a", "b", ""),
        Question("p", "a", "b", "r"),
        Question("p", "a", "b", repeat=1),
        Question("p", "ab", ""),
    ]
    assert len({question_key(q) for q in [base, *others]}) == len(others) + 1
    assert question_key(Question("p", "a", "b", meta={"x": 1})) == question_key(base)
    question_key(Question("\ud800", "a", "b"))  # half a character, as broken decoding leaves it


def test_sentinels_of_honest_and_dishonest_judges(tmp_path):
    texts = [Match("p", f"text {i}", "x") for i in range(4)] + [Match("p", "  ", "x")]
    honest = sentinels(Asker(Taste(lambda q: "tie"), tmp_path), texts)
    assert honest["asked"] == 4  # an empty text has no verbose copy
    assert honest["identical"] == {"tie": 1.0, "first": 0.0, "second": 0.0, "none": 0.0}
    assert honest["verbose"] == {"wins": 0.0, "ties": 1.0, "losses": 0.0}
    vain = sentinels(Asker(Taste(longer, name="vain"), tmp_path), texts)
    assert vain["verbose"]["wins"] == 1.0
    stuck = sentinels(Asker(Taste(always_first, name="stuck"), tmp_path), texts)
    assert stuck["identical"]["first"] == 1.0
    assert stuck["verbose"] == {"wins": 0.0, "ties": 1.0, "losses": 0.0}
    assert verbose("say it.\n") == "say it. say it.\n"


def test_repeat_agreement(tmp_path):
    moods = iter(["first", "second", "first", "first"])  # 2 questions, each asked twice
    fickle = Taste(lambda q: next(moods), deterministic=False)
    assert repeated(Asker(fickle, tmp_path), MATCHES[:1]) == 0.5
    assert [q.repeat for q in fickle.asked] == [0, 0, 1, 1]
    sure = Taste(longer)
    assert repeated(Asker(sure, tmp_path), MATCHES) == 1.0
    assert sure.asked == []  # true by construction
    mute = Taste(lambda q: "none", deterministic=False, name="mute")
    assert repeated(Asker(mute, tmp_path), MATCHES) is None


def test_the_same_prompts_are_chosen_whatever_the_order():
    ids = [f"id{i}" for i in range(50)]
    chosen = {ids[i] for i in spread(ids, 7)}
    back = list(reversed(ids))
    assert {back[i] for i in spread(back, 7)} == chosen
    assert len(chosen) == 7
    assert spread(ids, 99) == list(range(50))


def test_a_reward_as_judge(tmp_path):
    words = {"positive": ["good"], "negative": ["bad"], "part": "completion"}
    spec = Spec("alignlab.rewards.lexicon.Lexicon", words)
    judge = RewardJudge(reward=spec, margin=0.0)
    texts = [Match("p", "good", "bad"), Match("p", "table", "good"), Match("p", "x", "y")]
    asker = Asker(judge, tmp_path)
    assert [r.win for r in rule(asker, texts)] == [1.0, 0.0, 0.5]
    assert not list(tmp_path.iterdir())  # nothing is worth keeping
    # "good table" scores 1/2 against 1: within a margin of 0.5 that is a tie.
    near = [Match("p", "good", "good table")]
    assert [r.win for r in rule(asker, near)] == [1.0]
    wide = RewardJudge(reward=spec, margin=0.5)
    assert [r.win for r in rule(Asker(wide, tmp_path), near)] == [0.5]
    assert wide.fingerprint() != judge.fingerprint()
    assert (judge.name, judge.deterministic) == ("lexicon", True)
    with pytest.raises(ConfigError, match="input `judge`"):
        RewardJudge(reward=None, margin=0.0).fingerprint()


def test_a_reward_that_needs_what_the_data_know(tmp_path):
    judge = RewardJudge(
        reward=Spec("alignlab.rewards.verifiable.FinalNumber", {"answer": "answer"}), margin=0.0
    )
    match = Match("1+1", "it is 2", "it is 3", meta={"answer": "2"})
    assert rule(Asker(judge, tmp_path), [match])[0].win == 1.0


def test_prompts_are_filled_in_one_pass():
    question = Question("{second}", "one {prompt}", "two", reference="r")
    assert prompt().render(question) == "Q {second}\nR: r\nA: one {prompt}\nB: two\nOne letter."
    bare = prompt(reference=None).render(question)
    assert bare == "Q {second}\nA: one {prompt}\nB: two\nOne letter."
    assert prompt().render(Question("q", "a", "b")) == "Q q\nA: a\nB: b\nOne letter."
    plain = prompt(system="Be fair.").plain(Question("q", "a", "b"))
    assert plain == "Be fair.\n\nQ q\nA: a\nB: b\nOne letter.\n\nLetter:"


@pytest.mark.parametrize(
    ("reply", "side"),
    [
        ("A", "first"),
        (" B.\n", "second"),
        ("**C**", "tie"),
        ("[[A]]", "first"),
        ('"B"', "second"),
        ("a", None),
        ("A or B", None),
        ("Answer A is better", None),
        ("", None),
        ("AB", None),
        ("D", None),
    ],
)
def test_a_reply_is_read_strictly(reply, side):
    assert prompt().read(reply) == side
    assert prompt(tie=None).read("C") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "{prompt} {first}", "reference": None}, "{second}"),
        ({"text": "{prompt} {first} {second} {third}", "reference": None}, "{third}"),
        ({"text": "{prompt} {first} {second}"}, "no {reference}"),
        ({"reference": "R"}, "lacks the place"),
        ({"second": "a"}, "must differ"),
        ({"tie": "no winner"}, "one word"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        prompt(**change)
