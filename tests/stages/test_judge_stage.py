"""A judge stage over two evaluations: rows, record, references, and a judge that went on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage_lab import Chain, Lab

from alignlab import typed
from alignlab.compose import compose
from alignlab.errors import ConfigError, DataError
from alignlab.plan import Plan, build_stage
from alignlab.rewards.judge.judge import JudgeError, Reply
from alignlab.run import Run, Store
from alignlab.spec import Spec, build
from alignlab.stages.judge import Judge
from alignlab.stages.lineage import ancestors, trained_on

LENGTH = {"_target_": "alignlab.rewards.length.Length", "target_words": 3}
FIELDS = {
    "prompt_id", "sample", "prompt", "completion", "opponent_completion", "win", "forward",
    "backward", "consistent", "tokens", "opponent_tokens", "asked", "gold", "opponent_gold",
}  # fmt: skip


def reward_judge(reward: Any = LENGTH, margin: float = 0.0) -> dict[str, Any]:
    target = "alignlab.rewards.judge.reward_judge.RewardJudge"
    return {"_target_": target, "reward": reward, "margin": margin}


def stage(judge: dict[str, Any], *roles: str, **changes: Any) -> Judge:
    node = {
        "_target_": "alignlab.stages.judge.Judge",
        "inputs": {role: role for role in roles or ("samples", "opponent")},
        "seed": 0,
        "label": None,
        "judge": judge,
        "prompts": None,
        "repeats": 4,
        "sentinels": 4,
    }
    made = build_stage({**node, **changes}, "stages.judge")
    assert isinstance(made, Judge)
    return made


def written(chain: Chain, run: Run, name: str, stage: Any, inputs: dict[str, Run]) -> Run:
    """What the launcher writes beside a stage's own work."""
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / "config.json").write_text(json.dumps(typed.to_mapping(stage)), encoding="utf-8")
    run.update_record(inputs={role: parent.name for role, parent in inputs.items()})
    return chain.lab.run(stage, inputs, run)


@pytest.fixture(scope="module")
def trained(chain: Chain) -> Run:
    stage, inputs = chain.prefer()
    return written(chain, chain.lab.new_run("preference"), "dpo", stage, inputs)


def evaluated(chain: Chain, policy: Run, **changes: Any) -> Run:
    stage = chain.lab.stage("evaluate_sft", split="validation", data__validation=0.5, **changes)
    inputs = {**chain.inputs("reference", "reward"), "policy": policy}
    return written(chain, chain.lab.new_run("evaluate"), "evaluate", stage, inputs)


@pytest.fixture(scope="module")
def both(chain: Chain, trained: Run) -> dict[str, Run]:
    return {
        "samples": evaluated(chain, trained, samples=2),
        "opponent": evaluated(chain, chain.sft, samples=2),
    }


@pytest.mark.slow
def test_rows_and_record(chain: Chain, both: dict[str, Run]) -> None:
    run = chain.lab.run(stage(reward_judge()), both)
    rows = run.samples()
    mine = {(r["prompt_id"], r["sample"]): r for r in both["samples"].samples()}
    theirs = {(r["prompt_id"], r["sample"]): r for r in both["opponent"].samples()}
    assert all(row.keys() == FIELDS for row in rows)
    assert [(r["prompt_id"], r["sample"]) for r in rows] == list(mine)
    judge = build(Spec(LENGTH["_target_"], {"target_words": 3}))
    for row in rows:
        place = (row["prompt_id"], row["sample"])
        assert row["completion"] == mine[place]["completion"]
        assert row["opponent_completion"] == theirs[place]["completion"]
        assert row["opponent_gold"] == theirs[place]["gold"]
        assert row["tokens"] == mine[place]["tokens"]
        texts = [row["completion"], row["opponent_completion"]]
        one, two = judge.score(["", ""], texts, [{}, {}])
        assert row["win"] == (one > two) + 0.5 * (one == two)
        assert row["consistent"]
    wins = [row["win"] for row in rows]
    assert run.summary()["win_rate"] == pytest.approx(sum(wins) / len(wins))
    assert run.summary()["ties"] == wins.count(0.5) / len(wins)
    assert 0 <= run.summary()["lc_win_rate"] <= 1
    record = run.record
    assert record["judge"]["name"] == "length_3"
    assert record["matches"] == len(rows)
    assert record["prompts"] == len(rows) / 2
    assert record["repeat_agreement"] == 1.0
    assert record["trained_on"] is None
    assert record["sentinels"]["identical"]["tie"] == 1.0
    assert {"consistency", "calls", "cache_hits", "cost_usd"} <= record.keys()
    assert run.metrics("judge")[-1]["judged"] == len(rows)


def test_the_report_finds_the_number_of_the_record(chain: Chain, both: dict[str, Run]) -> None:
    """One method, one seed, one sample a prompt: no other difficulty, the same folds."""
    from alignlab.report.judging.length_control import controlled
    from alignlab.report.judging.numbers import _rows

    run = chain.lab.run(stage(reward_judge()), both)
    rows = run.samples()
    axis = {key: i for i, key in enumerate(sorted({row["prompt_id"] for row in rows}))}
    found, interval = controlled(_rows({0: rows}, axis))
    assert found.rate == pytest.approx(run.summary()["lc_win_rate"], abs=1e-12)
    assert interval.low <= found.rate <= interval.high


def test_a_policy_against_itself_is_all_ties(chain: Chain, both: dict[str, Run]) -> None:
    run = chain.lab.run(
        stage(reward_judge()), {"samples": both["opponent"], "opponent": both["opponent"]}
    )
    assert {row["win"] for row in run.samples()} == {0.5}
    assert run.record["consistency"] is None  # nothing had to be asked
    assert run.record["equal_texts"] == run.record["matches"]
    assert run.summary()["lc_win_rate"] == pytest.approx(0.5)


def test_only_some_prompts(chain: Chain, both: dict[str, Run]) -> None:
    run = chain.lab.run(stage(reward_judge(), prompts=2), both)
    assert len({row["prompt_id"] for row in run.samples()}) == 2
    assert len(run.samples()) == 4


def test_the_reference_answers_are_the_opponent(chain: Chain, both: dict[str, Run]) -> None:
    run = chain.lab.run(stage(reward_judge(), "samples"), {"samples": both["samples"]})
    data = build(chain.lab.stage("evaluate_sft", data__validation=0.5).data)
    groups = {g.id: g for g in data.load("validation")}
    tokenizer_end = 1
    for row in run.samples():
        group = groups[row["prompt_id"]]
        assert row["opponent_completion"] == group.completions[group.verdict.best()]
        # the tiny model's tokens are bytes
        length = len(row["opponent_completion"].encode()) + tokenizer_end
        assert row["opponent_tokens"] == length
        assert row["opponent_gold"] is None
    assert run.record["opponent"] == "reference answers"


@pytest.fixture
def configured() -> Iterator[Callable[[Run, Any], None]]:
    """Give a run its config.json, as a command would; taken away again: the chain is shared."""
    written: list[Path] = []

    def write(run: Run, config: Any) -> None:
        written.append(run.path / "config.json")
        written[-1].write_text(json.dumps(config), encoding="utf-8")

    yield write
    for file in written:
        file.unlink()


def test_a_reward_run_of_the_study_judges(
    chain: Chain, both: dict[str, Run], configured: Callable[[Run, Any], None]
) -> None:
    made = stage(reward_judge(None), "samples", "opponent", "judge")
    assert made.fingerprint() == ""
    reward = chain.reward
    config = typed.to_mapping(chain.lab.stage("reward"))
    configured(reward, config)
    run = chain.lab.run(made, {**both, "judge": reward})
    proxy = [
        {(r["prompt_id"], r["sample"]): r["proxy"] for r in both[role].samples()}
        for role in ("samples", "opponent")
    ]
    agree = 0
    for row in run.samples():
        place = (row["prompt_id"], row["sample"])
        lead = proxy[0][place] - proxy[1][place]
        agree += row["win"] == (0.5 if lead == 0 else float(lead > 0))
    # It reads texts again: where the sampled ids spell a text otherwise, scores differ a little.
    assert agree / len(run.samples()) > 0.8
    assert run.record["judge"]["name"] == reward.name
    with pytest.raises(ConfigError, match="needs a reward run"):
        chain.lab.run(made, {**both, "judge": chain.sft})


def test_a_judge_that_the_policy_was_trained_on_is_named(
    chain: Chain, both: dict[str, Run], trained: Run, configured: Callable[[Run, Any], None]
) -> None:
    matches = chain.lab.stage("annotate").annotator.arguments["reward"]
    spec = Spec("x.RewardJudge", {"reward": matches, "margin": 0.0})
    inputs = {"annotations": chain.annotations}
    config = typed.to_mapping(chain.lab.stage("annotate"))
    configured(chain.annotations, config)
    assert set(ancestors(trained)) >= {chain.annotations.name, chain.sft.name}
    assert trained_on(both["samples"], spec, None) == inputs["annotations"].name
    other = Spec("x.RewardJudge", {"reward": Spec(LENGTH["_target_"], {"target_words": 9})})
    assert trained_on(both["samples"], other, None) is None
    assert trained_on(both["samples"], other, chain.sft) == chain.sft.name
    assert trained_on(both["samples"], other, chain.reward) is None  # DPO never saw it
    node = typed.to_mapping(matches)
    run = chain.lab.run(stage(reward_judge(node)), both)
    assert run.record["trained_on"] == chain.annotations.name
    assert any("trained on" in warning for warning in run.record["warnings"])


def test_what_was_judged_before_an_interruption_is_kept(
    chain: Chain, both: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignlab.rewards.judge.local import LocalJudge

    asked: list[str] = []
    most = 3

    def answer(self: Any, questions: Any, heard: Any) -> None:
        for index, question in enumerate(questions):
            if len(asked) >= most:
                raise JudgeError("the cap is reached")
            asked.append(question.first + question.second)
            heard(index, Reply("first" if question.first > question.second else "second", usd=0.1))

    monkeypatch.setattr(LocalJudge, "answer", answer)
    made = stage(local("helpful"))
    run = chain.lab.new_run("judge")
    with pytest.raises(JudgeError):
        chain.lab.run(made, both, run)
    assert run.record["cost_usd"] == pytest.approx(0.3)
    assert not run.samples()
    most = 10**6
    done = chain.lab.run(made, both, run)
    total = len(asked)
    assert done.record["cost_usd"] == pytest.approx(0.1 * total)  # over both sessions
    whole = chain.lab.run(made, both)
    assert len(asked) == total  # every reply is remembered, in another run too
    assert whole.samples() == done.samples()
    assert whole.record["cost_usd"] == 0
    assert len(done.samples()) == len({(r["prompt_id"], r["sample"]) for r in done.samples()})


def local(name: str) -> dict[str, Any]:
    overrides = ["judge=local", "judge.model=random:tiny", f"judge/prompt={name}"]
    return dict(compose(["experiment=smoke", "pipeline=sft", *overrides])["judge"])


@pytest.mark.slow
def test_a_language_model_judges(
    chain: Chain, both: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(chain.lab.store.root))
    run = chain.lab.run(stage(local("sentiment"), prompts=2, sentinels=1), both)
    assert {row["forward"] for row in run.samples()} <= {"win", "tie", "loss"}
    assert run.record["judge"]["deterministic"] is True
    assert run.record["judge_tokens_in"] > 0
    assert run.record["cost_usd"] == 0


def test_a_run_of_the_study_judges_with_its_language_model(chain: Chain) -> None:
    made = stage({**local("sentiment"), "model": None}, "samples", "judge")
    judge: Any = made.opened({"judge": chain.sft})
    assert (judge.run, judge.store) == (chain.sft.name, str(chain.lab.store.root))
    with pytest.raises(ConfigError, match="needs a run with a language model"):
        made.opened({"judge": chain.reward})


def test_samples_that_meet_nobody(chain: Chain, both: dict[str, Run]) -> None:
    alone = evaluated(chain, chain.sft, samples=1)
    run = chain.lab.run(stage(reward_judge()), {"samples": both["samples"], "opponent": alone})
    assert {row["sample"] for row in run.samples()} == {0}
    assert any("have no opponent" in warning for warning in run.record["warnings"])
    lines = (alone.path / "samples.jsonl").read_text().splitlines()
    rows = [{**json.loads(line), "prompt_id": "another"} for line in lines]
    (alone.path / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match="none of its"):
        chain.lab.run(stage(reward_judge()), {"samples": both["samples"], "opponent": alone})


@pytest.mark.parametrize(
    ("judge", "roles", "message"),
    [
        (reward_judge(None), ("samples",), "judge.reward is null"),
        (reward_judge(), ("samples", "judge"), "both name a judge"),
    ],
)
def test_a_judge_is_named_once(judge: Any, roles: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage(judge, *roles)


ENDPOINT = ("judge=endpoint", "judge.base_url=http://127.0.0.1:9/v1", "judge.model=m")


def test_an_endpoint_takes_no_run() -> None:
    judge = compose(["experiment=smoke", "pipeline=sft", *ENDPOINT])["judge"]
    with pytest.raises(ConfigError, match="is no run"):
        stage(judge, "samples", "judge")


@pytest.mark.slow
def test_the_budget_is_outside_the_key(tmp_path: Any) -> None:
    """So that a raised cap goes on with the same run; a changed prompt is another run."""

    def key(*overrides: str) -> str:
        config = compose(
            [
                "experiment=smoke",
                "pipeline=preference",
                "+stage@stages.judge=judge",
                "+stages.judge.inputs.samples=evaluate",
                *ENDPOINT,
                *overrides,
            ]
        )
        plan = Plan.from_configs([config], Store(tmp_path))
        [found] = [node.run for node in plan.nodes.values() if node.kind == "judge"]
        return found

    base = key()
    raised = "judge.limits.calls=7", "judge.limits.usd=3", "judge.price={input: 1, output: 1}"
    assert key(*raised) == base
    assert key("judge/prompt=harmless") != base
    assert key("judge.attempts=4") != base


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["copeland", "mean"])
def test_a_judge_annotates(chain: Chain, tmp_path: Any, aggregation: str) -> None:
    """Rankings by the judge are those of its reward, which is the length here."""
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} bcd"}) + "\n" for i in range(30)))
    overrides = ["annotator=judge", f"annotator.aggregation={aggregation}", "judge=lexicon"]
    taste = ["reward@judge.reward=length", "judge.reward.target_words=2", "reward@gold=length"]
    lab = Lab.make(tmp_path, *overrides, *taste, data=data)
    run = lab.run(lab.stage("annotate"), {"policy": chain.sft})
    lines = (run.path / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    reward = build(Spec(LENGTH["_target_"], {"target_words": 2}))
    for line in lines:
        row = json.loads(line)
        texts = row["completions"]
        scores = list(reward.score([""] * len(texts), texts, [{}] * len(texts)))
        order = sorted(set(scores), reverse=True)
        assert row["verdict"]["ranks"] == [order.index(score) for score in scores]
    assert run.summary()["pairs"] > 0
    questions = sum(
        2 * sum(a != b for i, a in enumerate(t) for b in t[:i])
        for t in (json.loads(line)["completions"] for line in lines)
    )
    assert run.record["judge"]["questions"] == questions
    assert "judge" not in chain.annotations.record  # a simulated annotator costs nothing


def test_the_stage_has_no_hidden_fields(chain: Chain, both: dict[str, Run]) -> None:
    """Another seed is another run, and the same verdicts."""
    one = chain.lab.run(stage(reward_judge()), both)
    two = chain.lab.run(replace(stage(reward_judge()), seed=5), both)
    assert one.samples() == two.samples()


def test_the_lengths_of_a_judge_are_known_before_it_runs(chain: Chain, tmp_path: Any) -> None:
    named = compose(["judge=local", "judge.model=package:reviews_lm", "judge.token_budget=1000"])
    judge = stage(named["judge"])
    samples = chain.lab.stage("evaluate_sft", samples=2)
    found = judge.estimate(tmp_path, {"samples": samples, "opponent": samples}).workload
    assert found is not None
    # One question: the instructions, the prompt and two answers; passes of the judge's own budget.
    words = len(build(judge.judge).prompt.text) // 4
    assert found.row == found.group == words + samples.max_prompt + 2 * samples.max_completion
    assert found.budget == 1000
    assert found.scored % found.row == 0
