"""A language model as judge, against transformers: the labels' log-probabilities; annotators."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from judge_cases import Taste, always_first, longer, prompt

from alignlab.compose import compose
from alignlab.data.group import DEMONSTRATION, PromptGroup, Verdict
from alignlab.errors import ConfigError
from alignlab.models.load import resolve
from alignlab.plan import build_stage
from alignlab.rewards.judge.annotator import (
    JudgeAnnotator,
    copeland,
    mean_score,
    reference_of,
)
from alignlab.rewards.judge.asking import Asker
from alignlab.rewards.judge.judge import Question
from alignlab.rewards.judge.local import LocalJudge, balanced, verdict
from alignlab.rewards.judge.rulings import Ruling
from alignlab.rewards.panel import Member, Panel
from alignlab.rewards.reward import outside
from alignlab.spec import Spec, locate, parse

QUESTIONS = [Question(f"p{i}", "x" * (i + 1), "some other words " * i) for i in range(7)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def local(**changes):
    values = {
        "model": "random:tiny",
        "revision": None,
        "run": None,
        "store": None,
        "dtype": "float32",
        "balance": False,
        "token_budget": 4096,
        "prompt": prompt(),
    }
    return LocalJudge(**{**values, **changes})


def ask(judge, questions=QUESTIONS):
    replies = {}
    judge.answer(questions, replies.__setitem__)
    assert sorted(replies) == list(range(len(questions)))
    return [replies[i] for i in range(len(questions))]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [True, False])
def test_verdicts_are_the_likeliest_labels_by_transformers(store, chat):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignlab.data.template import Tokenization

    judge = local()
    folder = resolve("random:tiny", store / "cache")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not chat:
        bare = AutoTokenizer.from_pretrained(folder)
        bare.chat_template = None
        judge.__dict__["_loaded"] = (judge._loaded[0], Tokenization(bare, None, None))
    for question, reply in zip(QUESTIONS, ask(judge), strict=True):
        message = {"role": "user", "content": prompt().render(question)}
        text = prompt().plain(question)
        if chat:
            text = tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False
            )
        # The template writes BOS itself, else the tokenizer does.
        head = tokenizer(text, add_special_tokens=not chat)["input_ids"]
        wanted = []
        for label in "ABC":
            written = label if chat else f" {label}"
            tail = tokenizer(written, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*head, *tail]])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            each = logps.gather(1, ids[0, 1:, None])[-len(tail) :, 0]
            wanted.append(float(each.sum()))
        assert [float(v) for v in reply.said.split()] == pytest.approx(wanted, abs=2e-3)
        best = max(range(3), key=wanted.__getitem__)
        assert reply.side == ("first", "second", "tie")[best]


def test_the_batch_changes_no_verdict(store):
    one, many = ask(local(token_budget=1)), ask(local())
    assert [r.side for r in one] == [r.side for r in many]
    for a, b in zip(one, many, strict=True):
        values = [[float(v) for v in r.said.split()] for r in (a, b)]
        assert values[0] == pytest.approx(values[1], abs=2e-3)


def test_the_label_follows_the_assistant_s_header(store):
    """With a chat template, and not the cue of the plain form."""
    from alignlab.data.template import Tokenization
    from alignlab.models.templates import use_template

    judge = local(prompt=prompt(system="Be fair."))
    backbone, _ = judge._loaded
    tokenizer = use_template(backbone.tokenizer, "dialogue")
    [group] = judge._tokens(Tokenization(tokenizer, None, None), QUESTIONS[:1])
    text = tokenizer.decode(group.prompt, skip_special_tokens=True)
    assert text.startswith("System: Be fair.\n\nUser: Q p0")
    assert text.endswith("Assistant:")
    assert "Letter:" not in text
    assert [tokenizer.decode(c).strip() for c in group.completions] == ["A", "B", "C"]


def test_a_question_beyond_the_context_has_no_verdict(store):
    judge = local()
    limit = judge._loaded[0].model_config.max_position_embeddings
    long = Question("p", "x " * limit, "y")
    replies = ask(judge, [QUESTIONS[0], long, QUESTIONS[1]])
    assert [r.side for r in replies][1] == "none"
    assert str(limit) in replies[1].said
    assert [replies[0], replies[2]] == ask(judge, QUESTIONS[:2])


def test_balance_takes_the_preference_for_a_position_away(store):
    """By hand: an answer's score is the mean over the two places where it is shown."""
    words = prompt(tie=None)  # the tiny model would call everything a tie
    plain, fair = local(prompt=words), local(prompt=words, balance=True)
    back = [dataclasses.replace(q, first=q.second, second=q.first) for q in QUESTIONS]
    one, two = (
        [[float(v) for v in r.said.split()] for r in ask(plain, x)] for x in (QUESTIONS, back)
    )
    replies = ask(fair, QUESTIONS + back)
    for read, other, reply in zip(one, two, replies, strict=False):
        wanted = [(read[0] + other[1]) / 2, (read[1] + other[0]) / 2]
        assert [float(v) for v in reply.said.split()] == pytest.approx(wanted, abs=2e-3)
    mirror = {"first": "second", "second": "first"}
    sides = [reply.side for reply in replies]
    assert sides[len(QUESTIONS) :] == [mirror[side] for side in sides[: len(QUESTIONS)]]
    assert len(set(sides)) > 1
    same = [dataclasses.replace(q, second=q.first) for q in QUESTIONS]
    assert {r.side for r in ask(fair, same)} == {"tie"}
    assert fair.fingerprint() != plain.fingerprint()
    assert (fair.balanced, plain.balanced) == (True, False)
    assert balanced([-1.0, -3.0, -9.0], [-1.0, -2.0, -5.0]) == (-1.5, -2.0, -7.0)


def test_both_orders_of_a_match_are_read_once(store, monkeypatch):
    fair, counts = local(balance=True), []
    read = LocalJudge._logps

    def counting(self, questions):
        counts.append(len(questions))
        return read(self, questions)

    monkeypatch.setattr(LocalJudge, "_logps", counting)
    ask(fair, [QUESTIONS[0], dataclasses.replace(QUESTIONS[0], first=QUESTIONS[0].second,
                                                 second=QUESTIONS[0].first)])  # fmt: skip
    assert counts == [2]


def test_equal_log_probabilities_are_a_tie():
    assert verdict([-1.0, -1.0, -2.0], 3).side == "tie"
    assert verdict([-1.0, -2.0, -1.5], 3).side == "first"
    assert verdict([-3.0, -2.0], 3).side == "second"
    assert verdict([-3.0, -2.0, -1.0], 3).tokens_in == 3


def test_what_decides_is_in_the_fingerprint(store, tmp_path):
    base = local().fingerprint()
    assert local(token_budget=9).fingerprint() == base
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    others = [
        local(prompt=prompt(version="2")),
        local(dtype="bfloat16"),
        local(model="package:reviews_lm"),
        local(model=str(tmp_path / "model")),
    ]
    assert len({base, *(judge.fingerprint() for judge in others)}) == 5
    with pytest.raises(ConfigError, match="keep one"):
        local(run="sft-1")
    with pytest.raises(ConfigError, match="No run 'sft-1'"):
        local(model=None, run="sft-1").fingerprint()
    with pytest.raises(ConfigError, match="name a model"):
        local(model=None).fingerprint()


@pytest.mark.slow
def test_a_finished_run_judges(store):
    """A pretrained model stands for itself; a select run for the policy that it chose."""
    import shutil

    folder = resolve("random:tiny", store / "cache")
    for name, record in (("pretrain-1", {}), ("sft-1", {}), ("select-1", {"chosen": "sft-1"})):
        shutil.copytree(folder, store / name / "model")
        (store / name / "record.json").write_text(json.dumps(record))
        (store / name / "config.json").write_text("{}")
        (store / name / "DONE").write_text("{}")
    config = compose(["pipeline=sft", "backbone=tiny"])["backbone"]
    (store / "sft-1" / "config.json").write_text(json.dumps({"backbone": config}))
    wanted = ask(local(), QUESTIONS[:2])
    for name in ("pretrain-1", "sft-1", "select-1"):
        assert ask(local(model=None, run=name), QUESTIONS[:2]) == wanted
    (store / "sft-1" / "DONE").unlink()
    with pytest.raises(ConfigError, match="not finished"):
        ask(local(model=None, run="sft-1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["audit", "lexicon", "local", "endpoint", "reward"])
def test_every_judge_of_the_configuration_is_read(name):
    """Fields of the yaml and of the class are the same: a spec refuses more and fewer."""
    given = ["judge.base_url=http://h/v1", "judge.model=m"] if name == "endpoint" else []
    found = parse(compose(["pipeline=sft", f"judge={name}", *given])["judge"], "judge")
    fields = {f.name for f in dataclasses.fields(locate(found.target, "judge"))}
    assert set(found.arguments) == fields


@pytest.mark.slow
@pytest.mark.parametrize("name", ["helpful", "harmless", "sentiment"])
def test_the_prompts_of_the_configuration(name):
    config = compose(["pipeline=sft", "judge=local", f"judge/prompt={name}"])
    made = prompt(**config["judge"]["prompt"])
    text = made.render(Question("PROMPT", "ONE", "TWO", reference="REFERENCE"))
    assert text.index("PROMPT") < text.index("ONE") < text.index("TWO")
    assert ("REFERENCE" in text) == (name == "helpful")
    assert "{" not in text
    assert made.name == name
    assert made.labels == ("A", "B", "C")


# As an annotator


def annotating(tmp_path, taste, aggregation="copeland"):
    made = JudgeAnnotator(judge=Spec("none"), aggregation=aggregation)
    made.__dict__["_asker"] = Asker(taste, tmp_path)
    return made


def test_a_judge_ranks_completions(tmp_path):
    taste = Taste(longer)
    made = annotating(tmp_path, taste)
    group = PromptGroup("p", id="1")
    found = made.annotate(group, ["bb", "dddd", "a", "cc"], seed=0)
    # dddd wins 3; bb and cc win 1, tie 1, lose 1; a loses 3
    assert found.scores == (0, 3, -3, 0)
    assert found.verdict.ranks == (1, 0, 2, 1)
    assert len(taste.asked) == 12  # 6 pairs in both orders
    assert made.rank(group, ["bb", "dddd", "a", "cc"], seed=1).ranks == (1, 0, 2, 1)
    assert len(taste.asked) == 12  # remembered


def test_a_judge_of_positions_gives_no_pair(tmp_path):
    made = annotating(tmp_path, Taste(always_first))
    found = made.annotate(PromptGroup("p"), ["a", "b", "c"], seed=0)
    assert found.verdict.ranks == (0, 0, 0)
    assert found.verdict.pairs() == ()


def test_the_two_aggregations_by_hand():
    rulings = {
        (0, 1): Ruling("win", "win"),
        (0, 2): Ruling("win", "tie"),  # no win, but 0.75
        (1, 2): Ruling("none", "loss"),  # no match, but one order says that 2 is better
    }
    assert copeland(rulings, 3) == (1, -1, 0)
    # 0: (1 + 0.75) / 2; 1: (0 + 0) / 2; 2: (0.25 + 1) / 2
    assert mean_score(rulings, 3) == (0.875, 0.0, 0.625)
    assert mean_score({(0, 1): Ruling("none", "none")}, 2) == (0.5, 0.5)


def test_a_judge_is_a_member_of_a_panel(store):
    words = {"positive": ("long",), "negative": ("zzz",), "part": "completion"}
    lexicon = Spec("alignlab.rewards.lexicon.Lexicon", words)
    by_judge = Spec(
        "alignlab.rewards.judge.annotator.JudgeAnnotator",
        {
            "judge": Spec(
                "alignlab.rewards.judge.reward_judge.RewardJudge",
                {"reward": lexicon, "margin": 0.0},
            ),
            "aggregation": "mean",
        },
    )
    gold = Spec(
        "alignlab.rewards.annotator.Annotator",
        {"reward": lexicon, "noise": 0.0, "distribution": "gumbel", "flip": 0.0, "ties": 0.0},
    )
    members = {
        "judge": Member(annotator=by_judge, weight=1.0),
        "gold": Member(annotator=gold, weight=1.0),
    }
    panel = Panel(members=members, aggregation="majority")
    found = panel.annotate(PromptGroup("p", id="1"), ["so", "long", "zzz"], 0)
    assert found.votes == ((1, 0, 2), (1, 0, 2))
    assert found.agreement == 1.0
    assert len(outside(Spec("alignlab.rewards.panel.Panel", {"members": members}))) == 1
    assert panel.fingerprint()


@pytest.mark.slow
def test_the_judge_s_model_is_in_the_key_of_annotations(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    base = ["experiment=smoke", "pipeline=preference"]
    judged = [*base, "annotator=judge", "judge=local", f"judge.model={folder}"]

    def key(overrides):
        return build_stage(compose(overrides)["stages"]["annotate"], "a").fingerprint()

    one = key(judged)
    (folder / "config.json").write_text('{"other": 1}')
    assert key(judged) != one
    assert len(key(base).split()) == 2  # nothing is added for an annotator without a judge


def test_reference_answers():
    assert reference_of(PromptGroup("p", meta={"reference": "r"})) == "r"
    assert reference_of(PromptGroup("p", ("a",), DEMONSTRATION)) == "a"
    assert reference_of(PromptGroup("p", ("a", "b"), Verdict("ranking", ranks=(1, 0)))) == "b"
    chat = PromptGroup(
        ({"role": "user", "content": "q"},),
        (({"role": "assistant", "content": "a"},),),
        DEMONSTRATION,
    )
    assert reference_of(chat) == "a"
    assert reference_of(PromptGroup("p")) is None
    assert reference_of(PromptGroup("p", ("a", "b"))) is None  # nobody knows which is better
    assert reference_of(PromptGroup("p", ("a",), Verdict("thumbs", thumbs=(False,)))) is None
