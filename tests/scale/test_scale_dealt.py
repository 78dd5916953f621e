"""Stages that sample and score give the same, however many processes their prompts are dealt to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from stage_lab import Chain
from two_processes import start

from alignlab import typed
from alignlab.compose import compose
from alignlab.plan import build_stage
from alignlab.run import Run
from alignlab.stages.stage import Stage

pytestmark = [pytest.mark.slow, pytest.mark.scale]

SCRIPT = Path(__file__).with_name("dealt_program.py")
TARGET = "alignlab.rewards.judge.reward_judge.RewardJudge"
LENGTH = {"_target_": "alignlab.rewards.length.Length", "target_words": 3}
ANNOTATOR = {
    "_target_": "alignlab.rewards.judge.annotator.JudgeAnnotator",
    "judge": {"_target_": TARGET, "reward": LENGTH, "margin": 0.0},
    "aggregation": "copeland",
}
# What a process has to say of itself, and not of the result.
OF_PROCESSES = {"started", "seconds", "peak_memory_bytes", "summary"}


@dataclass(frozen=True)
class Case:
    """A stage that trains nothing, and the runs that it reads."""

    stage: Stage
    inputs: Mapping[str, Run]
    zero: int = 0

    def stated(self, chain: Chain, key: str) -> dict[str, Any]:
        target = f"{type(self.stage).__module__}.{type(self.stage).__name__}"
        engine = replace(chain.lab.engine, zero=self.zero, token_budget=90)
        return {
            "config": {"_target_": target, **typed.to_mapping(self.stage)},
            "inputs": {role: str(run.path) for role, run in self.inputs.items()},
            "engine": typed.to_mapping(engine),
            "store": str(chain.lab.store.root),
            "key": key,
        }


def benchmark(chain: Chain, folder: Path) -> Stage:
    """Five items of each way to ask a policy: samples, likelihoods, the likeliest token."""
    sums = [{"question": f"{n} and 1?", "answer": f"#### {n + 1}"} for n in range(5)]
    texts = [{"text": "abc def " * n} for n in (1, 2, 9, 12, 4)]
    choices = [{"ctx": "aa " * n, "endings": ["cc", "ddd e"], "label": 1} for n in range(1, 6)]
    for name, rows in (("sums", sums), ("texts", texts), ("choices", choices)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    tasks = "stages.benchmark.tasks"
    data = chain.lab.store.root.parent / "data.jsonl"
    config = compose([
        "experiment=smoke", "pipeline=sft", f"data.path={data}", "data.test=0.1",
        "+stage@stages.benchmark=benchmark", "+stages.benchmark.inputs.policy=sft",
        f"data@{tasks}.perplexity.data=file", f"{tasks}.perplexity.data.path={folder}/texts.jsonl",
        f"{tasks}.perplexity.data.test_path={folder}/texts.jsonl", f"{tasks}.perplexity.split=test",
        f"{tasks}.perplexity.items=null",
        f"{tasks}.perplexity.window=40", f"{tasks}.perplexity.context=8",
        f"+task@{tasks}.choices=multiple_choice", f"{tasks}.choices.path={folder}/choices.jsonl",
        f"+task@{tasks}.sums=exact_match", f"{tasks}.sums.data.path={folder}/sums.jsonl",
        f"{tasks}.sums.sampling.max_new_tokens=6",
    ])  # fmt: skip
    return build_stage(config["stages"]["benchmark"], "stages.benchmark")


def reward_benchmark(chain: Chain) -> Stage:
    node = {
        "_target_": "alignlab.stages.reward_benchmark.RewardBenchmark",
        "backbone": typed.to_mapping(chain.lab.stage("evaluate_sft"))["backbone"],
        "inputs": {"reward": "reward", "annotations": "annotations"},
        "seed": 0, "sets": {}, "max_prompt": None, "max_completion": None,
    }  # fmt: skip
    return build_stage(node, "stages.reward_benchmark")


def judge() -> Stage:
    node = {
        "_target_": "alignlab.stages.judge.Judge", "seed": 0,
        "inputs": {"samples": "samples", "opponent": "opponent"},
        "judge": {"_target_": TARGET, "reward": LENGTH, "margin": 0.0},
        "prompts": None, "repeats": 2, "sentinels": 2,
    }  # fmt: skip
    return build_stage(node, "stages.judge")


@pytest.fixture(scope="module")
def cases(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    lab = chain.lab
    roles = chain.inputs("policy", "reference", "reward")
    early = lab.run(lab.stage("sft", steps=1), {})  # so that the log-ratios are not zero
    of = {"split": "validation", "data__validation": 0.3, "data__test": 0.1}
    one = lab.stage("evaluate_sft", samples=2, **of)
    best = lab.stage("evaluate_sft", best_of=2, **of)
    benched = benchmark(chain, tmp_path_factory.mktemp("sets"))
    found = {
        "evaluate": Case(one, {**roles, "reference": early}),
        "best of two": Case(best, roles),
        "annotate": Case(lab.stage("annotate", validation_share=0.2), chain.inputs("policy")),
        "judged": Case(lab.stage("annotate", annotator=ANNOTATOR), chain.inputs("policy")),
        "benchmark": Case(benched, chain.inputs("policy")),
        "reward benchmark": Case(reward_benchmark(chain), chain.inputs("reward", "annotations")),
    }
    samples = {name: alone(chain, found[name]) for name in ("evaluate", "best of two")}
    for name, run in samples.items():
        (run.path / "config.json").write_text(json.dumps(typed.to_mapping(found[name].stage)))
    inputs = {"samples": samples["best of two"], "opponent": samples["evaluate"]}
    return {**found, "judge": Case(judge(), inputs)}


def alone(chain: Chain, case: Case) -> Run:
    """The stage in this process."""
    return chain.lab.run(case.stage, case.inputs)


def compared(one: Run, many: Run) -> Iterator[str]:
    """What is not the same in both runs: texts to the letter, numbers up to rounding."""
    for name in ("samples.jsonl", "annotations.jsonl"):
        mine, theirs = (lines(run.path / name) for run in (one, many))
        if len(mine) != len(theirs):
            yield f"{name}: {len(theirs)} lines instead of {len(mine)}"
        for number, (row, other) in enumerate(zip(mine, theirs, strict=False), 1):
            if not alike(row, other):
                yield f"{name}, line {number}: {other} instead of {row}"
    records = [
        {k: v for k, v in run.record.items() if k not in OF_PROCESSES} for run in (one, many)
    ]
    for name in records[0].keys() | records[1].keys():
        if not alike(records[0].get(name), records[1].get(name)):
            yield f"record, {name}: {records[1].get(name)} instead of {records[0].get(name)}"
    if not alike(one.summary(), many.summary()):
        yield f"summary: {many.summary()} instead of {one.summary()}"


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return other == pytest.approx(one, rel=1e-5, abs=1e-5)
    return one == other


def together(
    folder: Path, chain: Chain, cases: Sequence[Case], processes: int, mark: str
) -> list[Run]:
    """Do the cases in ``processes`` processes."""
    keys = [f"{mark}{number:02d}" for number in range(len(cases))]
    folder.mkdir()
    plan: Any = [case.stated(chain, key) for case, key in zip(cases, keys, strict=True)]
    start(folder, plan, processes, script=SCRIPT)
    return [chain.lab.store.run(c.stage.kind, k) for c, k in zip(cases, keys, strict=True)]


@pytest.mark.conformance(
    "equivalence",
    "evaluate, annotate, judge, benchmark, reward_benchmark",
    "prompts dealt out over two processes, over two at ZeRO 3, and over three give the texts of one"
    " to the letter, and its numbers to 1e-5",
)
def test_prompts_dealt_out_give_what_one_process_gives(
    chain: Chain, cases: dict[str, Case], tmp_path: Path
) -> None:
    shared = [replace(case, zero=3) for case in cases.values()]
    two = together(tmp_path / "2", chain, [*cases.values(), *shared], 2, "two")
    of_three = {name: cases[name] for name in ("evaluate", "annotate", "judge")}
    three = together(tmp_path / "3", chain, list(of_three.values()), 3, "three")
    wrong = []
    for place, (name, case) in enumerate(cases.items()):
        one = alone(chain, case)
        ways = {"two": two[place], "two at ZeRO 3": two[place + len(cases)]}
        if name in of_three:
            ways["three"] = three[list(of_three).index(name)]
        for way, run in ways.items():
            assert run.verify() == []
            wrong += [f"{name}, {way}: {line}" for line in compared(one, run)]
    assert wrong == []
