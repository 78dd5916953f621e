"""Every conf/task and conf/pairs file composes, states every field, and says what each is."""

from __future__ import annotations

from dataclasses import fields

import pytest

from alignlab.compose import compose, conf_dir
from alignlab.plan import build_stage
from alignlab.spec import locate
from alignlab.stages.benchmark import Benchmark
from alignlab.stages.reward_benchmark import RewardBenchmark

TASKS = sorted(path.stem for path in (conf_dir() / "task").glob("*.yaml"))
GIVEN = {  # what a person must state
    "multiple_choice": ["path=rows.jsonl"],
    "lm_harness": ["tasks=[hellaswag]"],
    "exact_match": ["data.path=rows.jsonl"],
    "instructions": ["data.path=rows.jsonl"],
    "refusal": ["data.path=rows.jsonl"],
}
BASE = [
    "pipeline=sft",
    "experiment=smoke",
    "+stage@stages.b=benchmark",
    "+stages.b.inputs.policy=s",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_states_every_field_with_a_comment(name: str) -> None:
    own = [f"stages.b.tasks.mine.{o}" for o in GIVEN.get(name, ())]
    node = compose([*BASE, f"+task@stages.b.tasks.mine={name}", *own])["stages"]["b"]
    cls = locate(node["tasks"]["mine"]["_target_"], name)
    assert set(node["tasks"]["mine"]) - {"_target_"} == {f.name for f in fields(cls)}
    stage = build_stage(node, "stages.b")
    assert isinstance(stage, Benchmark)
    assert set(stage.tasks) == {"perplexity", "generation", "mine"}
    lines = (conf_dir() / "task" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    for line in lines[1:]:
        key, _, value = line.strip().partition(":")
        if value and key not in ("_target_", "defaults") and not line.startswith("#"):
            assert "#" in line or key == "max_new_tokens", line  # its name says it


def test_pairs_and_their_stage_compose() -> None:
    rb = "stages.rb"
    node = compose(
        [
            "pipeline=sft", f"+stage@{rb}=reward_benchmark", f"+{rb}.inputs.reward=r",
            f"+pairs@{rb}.sets.mine=file", f"{rb}.sets.mine.data.path=rows.jsonl",
        ]
    )["stages"]["rb"]  # fmt: skip
    stage = build_stage(node, rb)
    assert isinstance(stage, RewardBenchmark)
    assert stage.sets["mine"].split == "all"
    assert {f.name for f in fields(stage)} == set(node) - {"_target_"}


@pytest.mark.slow
def test_the_default_tasks_need_nothing_but_the_package() -> None:
    node = compose(BASE)["stages"]["b"]
    assert list(node["tasks"]) == ["perplexity", "generation"]
    assert node["tasks"]["perplexity"]["data"]["_target_"].endswith("Reviews")
    fewer = compose([*BASE, "~stages.b.tasks.generation"])["stages"]["b"]
    assert list(fewer["tasks"]) == ["perplexity"]
