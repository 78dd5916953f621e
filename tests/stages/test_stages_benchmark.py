"""The benchmark stage: likelihoods by hand, the same items for every policy, means of its rows."""

from __future__ import annotations

import json
import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_lab import Chain, PlainHead, plain_model, token_logps

from alignlab import interruption
from alignlab.compose import compose
from alignlab.data.template import Tokenization
from alignlab.errors import ConfigError, Interrupted
from alignlab.plan import build_stage
from alignlab.run import Run
from alignlab.spec import build
from alignlab.stages import benchmark
from alignlab.stages.benchmark import Benchmark, means
from alignlab.stages.reward_benchmark import RewardBenchmark

CHOICES = [
    {"ctx": "aa bb", "endings": ["cc", "ddd e"], "label": 1},
    {"ctx": "f", "endings": ["g", "hh", "iii"], "label": 0},
]
SUMS = [{"question": f"{n} and 1?", "answer": f"#### {n + 1}"} for n in range(4)]
WISHES = [
    {"key": 1, "prompt": "Say a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Say b",
        "instruction_id_list": ["words:start_verb", "startend:quotation"],
        "kwargs": [{}, {}],
    },
]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(chain: Chain, name: str, *overrides: str) -> dict[str, Any]:
    data = chain.lab.store.root.parent / "data.jsonl"
    shared = ["experiment=smoke", "pipeline=sft", f"data.path={data}", "data.test=0.1"]
    return compose([*shared, f"+stage@stages.{name}={name}", *overrides])["stages"][name]


@pytest.fixture(scope="module")
def stage(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder, tasks = tmp_path_factory.mktemp("sets"), "stages.benchmark.tasks"
    choices = lines(folder / "choices.jsonl", CHOICES)
    sums = lines(folder / "sums.jsonl", SUMS)
    wishes = lines(folder / "wishes.jsonl", WISHES)
    texts = lines(folder / "texts.jsonl", [{"text": "abc def " * n} for n in (1, 2, 9, 12)])
    node = config(
        chain, "benchmark", "+stages.benchmark.inputs.policy=sft",
        f"data@{tasks}.perplexity.data=file", f"{tasks}.perplexity.data.path={texts}",
        f"{tasks}.perplexity.data.test_path={texts}", f"{tasks}.perplexity.split=test",
        f"{tasks}.perplexity.items=null",
        f"{tasks}.perplexity.window=40", f"{tasks}.perplexity.context=8",
        f"+task@{tasks}.choices=multiple_choice", f"{tasks}.choices.path={choices}",
        f"+task@{tasks}.sums=exact_match", f"{tasks}.sums.data.path={sums}",
        f"{tasks}.sums.sampling.max_new_tokens=6",
        f"+task@{tasks}.wishes=instructions", f"{tasks}.wishes.data.path={wishes}",
        f"{tasks}.wishes.data.style=text", f"{tasks}.wishes.sampling.max_new_tokens=6",
        f"+task@{tasks}.refusal=refusal", f"{tasks}.refusal.data.path={sums}",
        f"{tasks}.refusal.harmful=false", f"{tasks}.refusal.sampling.max_new_tokens=6",
        f"+task@{tasks}.copying=copying", f"{tasks}.copying.ngrams=[1,2]",
        f"{tasks}.copying.sampling.max_new_tokens=9", f"{tasks}.copying.recited=6",
        f"{tasks}.copying.prefix=1", f"{tasks}.copying.continuation=3",
    )  # fmt: skip
    made = build_stage(node, "stages.benchmark")
    assert isinstance(made, Benchmark)
    return made


@pytest.fixture(scope="module")
def done(chain: Chain, stage: Benchmark) -> Run:
    return chain.lab.run(stage, {"policy": chain.sft})


def rows_of(run: Run, task: str, metric: str) -> list[dict[str, Any]]:
    return [r for r in run.samples() if (r["task"], r["metric"]) == (task, metric)]


@pytest.mark.slow
def test_every_task_has_its_metrics(done: Run) -> None:
    assert set(done.summary()) == {
        "perplexity/nll_per_token", "perplexity/nll_per_byte",
        "generation/distinct_1", "generation/distinct_2", "generation/self_bleu",
        "generation/repetition", "generation/empty", "generation/finished", "generation/length",
        "choices/acc", "choices/acc_norm", "choices/brier", "sums/accuracy", "sums/finished",
        "wishes/prompt_strict", "wishes/prompt_loose", "wishes/instruction_strict",
        "wishes/instruction_loose", "wishes/finished", "refusal/refusal_rate", "refusal/empty",
        "copying/copied_1", "copying/copied_1_human", "copying/copied_2",
        "copying/copied_2_human", "copying/longest_copy", "copying/longest_copy_human",
        "copying/extracted", "copying/extracted_held_out",
    }  # fmt: skip
    better = done.record["better"]
    assert set(better) == set(done.summary())
    assert better["perplexity/nll_per_token"] == better["refusal/refusal_rate"] == "lower"
    assert better["sums/accuracy"] == "higher"
    assert better["generation/length"] is None


def test_copying_by_hand(chain: Chain, stage: Benchmark, done: Run) -> None:
    """Bigrams and the longest run of every sample, looked for in every training completion."""
    task = build(stage.tasks["copying"])
    source, tokenizer = build(task.data), model_tokenizer(chain)
    tokenization = Tokenization(tokenizer, task.max_prompt, task.max_completion)
    shown = [g.demonstration() for g in source.load("sft")][: task.rows]
    trained = tokenization.groups(shown)

    def found(ids: list[int], n: int) -> list[bool]:
        bodies = [g.completions[0].tolist() for g in trained]
        runs = {tuple(b[i : i + n]) for b in bodies for i in range(len(b) - n + 1)}
        return [tuple(ids[i : i + n]) in runs for i in range(len(ids) - n + 1)]

    held_out = {g.id: g.demonstration() for g in source.load("test")[: task.items]}
    longest = rows_of(done, "copying", "longest_copy")
    assert len(longest) == len(held_out) > 1
    for row in longest:
        group = held_out[row["item"]]
        for ending, text in (("", row["completion"]), ("_human", group.completions[0])):
            [tokens] = tokenization.groups([replace(group, completions=(text,))])
            ids = tokens.completions[0].tolist()
            ids = ids[:-1] if not tokens.truncated[0] else ids
            best = max((n for n in range(1, len(ids) + 1) if any(found(ids, n))), default=0)
            rows = {r["item"]: r for r in rows_of(done, "copying", f"longest_copy{ending}")}
            assert rows[row["item"]]["value"] == best
            pairs = {r["item"]: r for r in rows_of(done, "copying", f"copied_2{ending}")}
            if row["item"] in pairs:
                share = found(ids, 2)
                assert pairs[row["item"]]["value"] == pytest.approx(sum(share) / len(share))
                assert pairs[row["item"]].get("weight", 1) == len(share)
    better = done.record["better"]
    assert better["copying/copied_2"] == "lower"
    assert better["copying/copied_2_human"] is None


def test_recitation_by_hand(chain: Chain, stage: Benchmark, done: Run) -> None:
    """Three greedy tokens behind the prompt and one token of the completion, one at a time."""
    task = build(stage.tasks["copying"])
    model = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    tokenization = Tokenization(model_tokenizer(chain), task.max_prompt, task.max_completion)
    shown = [g.demonstration() for g in build(task.data).load("sft")][: task.rows]
    groups = {g.id: g for g in tokenization.groups(shown)}
    rows = rows_of(done, "copying", "extracted")
    assert len(rows) == 6
    for row in rows:
        group = groups[row["item"]]
        ids = [*group.prompt.tolist(), int(group.completions[0][0])]
        wanted = group.completions[0][1:4].tolist()
        for _ in wanted:
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert row["value"] == float(ids[-3:] == wanted)


def test_likelihood_of_texts_by_hand(chain: Chain, done: Run) -> None:
    model = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    tokenizer = model_tokenizer(chain)
    found = {}
    for text in ("abc def " * n for n in (1, 2, 9, 12)):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        head = [
            tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ]
        total, start = 0.0, 0
        while start < len(ids):  # windows of 40 tokens that begin with 8 of the one before
            before = head + ids[:start] if start == 0 else ids[start - 8 : start]
            part = ids[start : start + 40 - len(before)]
            with torch.no_grad():
                total -= float(token_logps(model, before, part).sum())
            start += len(part)
        found[len(text.encode())] = (total, len(ids))
    rows = {r["weight"]: r["value"] for r in rows_of(done, "perplexity", "nll_per_byte")}
    assert rows == {
        float(size): pytest.approx(total / size, abs=1e-5) for size, (total, _) in found.items()
    }
    # the mean of all tokens, not of the documents' means
    tokens = sum(count for _, count in found.values())
    nll = sum(total for total, _ in found.values())
    assert done.summary()["perplexity/nll_per_token"] == pytest.approx(nll / tokens, abs=1e-5)


def model_tokenizer(chain: Chain) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(chain.sft.model_dir)


def test_multiple_choice_by_hand(chain: Chain, done: Run) -> None:
    model = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    tokenization = Tokenization(model_tokenizer(chain), None, None)
    acc, norm = [], []
    for row in CHOICES:
        from alignlab.data.group import PromptGroup

        prompt = tokenization.prompt(PromptGroup(row["ctx"]), 0).prompt
        sums = []
        for choice in row["endings"]:
            ids = model_tokenizer(chain)(" " + choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                sums.append(float(token_logps(model, prompt, ids).sum()))
        rate = [s / len(c) for s, c in zip(sums, row["endings"], strict=True)]
        acc.append(float(sums.index(max(sums)) == row["label"]))
        norm.append(float(rate.index(max(rate)) == row["label"]))
    assert [r["value"] for r in rows_of(done, "choices", "acc")] == acc
    assert [r["value"] for r in rows_of(done, "choices", "acc_norm")] == norm


def test_instructions_that_nobody_can_check_are_named(done: Run) -> None:
    assert done.record["tasks"]["wishes"]["unknown"] == {"words:start_verb (no checker)": 1}
    assert any("words:start_verb" in warning for warning in done.record["warnings"])
    # one prompt with a verdict, two instructions with one
    assert len(rows_of(done, "wishes", "prompt_strict")) == 1
    assert len(rows_of(done, "wishes", "instruction_strict")) == 2


def test_the_summary_is_the_weighted_mean_of_the_rows(done: Run) -> None:
    rows = done.samples()
    assert done.summary() == pytest.approx(means(rows))
    two = [{"task": "t", "metric": "m", "value": 1.0, "weight": 3.0},
           {"task": "t", "metric": "m", "value": 0.0}]  # fmt: skip
    assert means(two) == {"t/m": 0.75}
    assert done.record["tokens_sampled"] > 0 < done.record["tokens_scored"]


@pytest.mark.slow
def test_the_same_items_for_every_policy(
    chain: Chain, stage: Benchmark, earlier: Run, done: Run
) -> None:
    other = chain.lab.run(stage, {"policy": earlier})

    def keys(run: Run) -> list[tuple[Any, ...]]:
        # an n-gram of a policy's own samples counts once for each that there is
        own = [(r, r["task"] == "copying") for r in run.samples()]
        return [(r["task"], r["metric"], r["item"], not c and r.get("weight")) for r, c in own]

    assert keys(done) == keys(other)
    assert other.summary() != done.summary()
    again = chain.lab.run(stage, {"policy": chain.sft}, token_budget=64)
    values = [r["value"] for r in done.samples()]
    assert [r["value"] for r in again.samples()] == pytest.approx(values, abs=1e-4)


def test_an_interrupted_benchmark_writes_nothing_twice(
    chain: Chain, stage: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {"choices": stage.tasks["choices"]}
    run, log = chain.lab.new_run("benchmark"), Run.log

    def never(self: Run, *args: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", never)
        with pytest.raises(KeyboardInterrupt):
            chain.lab.run(replace(stage, tasks=one), {"policy": chain.sft}, run)
    assert log is Run.log
    assert run.samples()
    chain.lab.run(replace(stage, tasks=one), {"policy": chain.sft}, run)
    assert len(run.samples()) == 6
    assert len(run.metrics()) == 1


def test_a_finished_task_is_not_asked_again(
    chain: Chain, stage: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the third task: the first two are kept, with what they cost."""
    names = ("choices", "sums", "wishes", "perplexity")
    stage = replace(stage, tasks={name: stage.tasks[name] for name in names})
    whole = chain.lab.run(stage, {"policy": chain.sft})
    asked: list[str] = []

    def of(make: Any, last: str | None) -> Any:
        def built(spec: Any) -> Any:
            task = make(spec)
            name = next(n for n in names if stage.tasks[n] is spec)
            if name == last:
                os.kill(os.getpid(), signal.SIGTERM)
            asked.append(name)
            return task

        return built

    run = chain.lab.new_run("benchmark")
    for last in ("wishes", None):
        with monkeypatch.context() as patch:
            patch.setattr(benchmark, "build", of(benchmark.build, last))
            stopped = pytest.raises(Interrupted) if last else nullcontext()
            with stopped, interruption.heeding():
                chain.lab.run(stage, {"policy": chain.sft}, run)
    assert asked == ["choices", "sums", "wishes", "perplexity"]
    assert run.samples() == whole.samples()
    assert run.record == whole.record
    assert sum(path.suffix == ".task" for path in run.path.rglob("*")) == 0  # gone when done


def test_prompts_that_do_not_fit_are_cut_and_counted(chain: Chain, stage: Benchmark) -> None:
    short = replace(stage, max_prompt=4, tasks={"sums": stage.tasks["sums"]})
    run = chain.lab.run(short, {"policy": chain.sft})
    assert any("4 of 4 prompts did not fit" in warning for warning in run.record["warnings"])


@pytest.mark.parametrize("name", ["a/b", "a:b"])
def test_names_that_would_make_unclear_keys_are_refused(stage: Benchmark, name: str) -> None:
    with pytest.raises(ConfigError, match="no '/' and no ':'"):
        replace(stage, tasks={name: stage.tasks["sums"]})
    with pytest.raises(ConfigError, match="none"):
        replace(stage, tasks={})


def test_another_file_is_another_key(chain: Chain, stage: Benchmark) -> None:
    before = stage.fingerprint()
    path = Path(stage.tasks["choices"].arguments["path"])
    kept = path.read_text()
    path.write_text(kept + kept)
    assert stage.fingerprint() != before
    path.write_text(kept)
    assert stage.fingerprint() == before


def test_a_reward_model_orders_pairs_by_hand(chain: Chain, tmp_path: Path) -> None:
    pairs = [{"prompt": "x", "chosen": "aa", "rejected": "b"},
             {"prompt": "y", "chosen": "c", "rejected": "ddd"}]  # fmt: skip
    path = lines(tmp_path / "pairs.jsonl", pairs)
    node = config(
        chain, "reward_benchmark", "+stages.reward_benchmark.inputs={reward: r, annotations: a}",
        "+pairs@stages.reward_benchmark.sets.mine=file",
        f"stages.reward_benchmark.sets.mine.data.path={path}",
    )  # fmt: skip
    stage = build_stage(node, "stages.reward_benchmark")
    assert isinstance(stage, RewardBenchmark)
    run = chain.lab.run(stage, {"reward": chain.reward, "annotations": chain.annotations})
    model = plain_model(chain.reward.model_dir, chain.lab.store.cache)
    head = PlainHead.load(chain.reward.model_dir)
    tokenization = Tokenization(model_tokenizer(chain), None, None)
    from alignlab.data.group import PromptGroup

    found = {}
    for row in pairs:
        tokens = tokenization.group(PromptGroup(row["prompt"], (row["chosen"], row["rejected"])), 0)
        with torch.no_grad():
            good, bad = (float(head.along(model, tokens.prompt, c)[-1]) for c in tokens.completions)
        found[round(good, 3)] = good - bad
    mine = [r for r in run.samples() if r["task"] == "mine"]
    assert {round(r["chosen_score"], 3): r["margin"] for r in mine} == pytest.approx(
        found, abs=1e-4
    )
    for row in mine:
        assert row["value"] == float(row["margin"] > 0)
        logit = row["margin"] / float(head.gain)
        assert row["probability"] == pytest.approx(1 / (1 + 2.718281828**-logit), abs=1e-4)
    assert run.record["gain"] == pytest.approx(float(head.gain))
    annotated = [r for r in run.samples() if r["task"] == "annotated"]
    accuracy = chain.reward.summary()["validation_accuracy"]
    assert sum(r["value"] for r in annotated) / len(annotated) == pytest.approx(accuracy)
    assert run.summary()["annotated/accuracy"] == pytest.approx(accuracy)


def test_a_reward_benchmark_without_pairs_is_refused(chain: Chain) -> None:
    node = config(chain, "reward_benchmark", "+stages.reward_benchmark.inputs.reward=r")
    with pytest.raises(ConfigError, match="sets: none"):
        build_stage(node, "stages.reward_benchmark")
