"""What must not change a result: micro-batches, layout, order, copies, decoding, processes.

Every method of conf/ is here: SFT, the reward model, every yaml of conf/objective, PPO with and
without a pretraining term, GRPO and every stage that is GRPO with other values.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from equivalence_cases import (
    METHODS,
    OFFLINE,
    ONLINE,
    READING,
    Trained,
    early,
    method,
    reordered,
    train,
    views_apart,
)
from equivalence_checks import (
    TOLERANCE,
    assert_files_equal,
    assert_lines_equal,
    model_difference,
)
from mutation import catches
from stage_lab import Caught, Chain, largest_difference, plain_model, token_logps
from two_processes import described, start

from alignlab.stages.annotate import read

pytestmark = pytest.mark.slow

WHOLE = 1_000_000  # tokens; every step is one micro-batch

_whole: dict[tuple[int, str], Trained] = {}


@pytest.fixture(params=["full", "lora"])
def some_chain(request: pytest.FixtureRequest) -> Chain:
    return request.getfixturevalue("chain" if request.param == "full" else "lora_chain")


def whole(chain: Chain, name: str) -> Trained:
    """The training that the others are compared with, made once."""
    key = (id(chain), name)
    if key not in _whole:
        _whole[key] = train(chain.lab, *method(chain, name), token_budget=WHOLE)
    return _whole[key]


def trained(chain: Chain, name: str, change: str) -> Trained:
    """The same training in another arrangement."""
    if change == "one_by_one":  # a budget that no prompt fits: each is a micro-batch of its own
        return train(chain.lab, *method(chain, name), token_budget=1)
    if change == "budget":
        return train(chain.lab, *method(chain, name), token_budget=90)
    if change == "padded":
        padded = method(chain, name, backbone__layout="padded")
        return train(chain.lab, *padded, token_budget=90)
    if change == "decoding":
        return train(chain.lab, *method(chain, name, sampling__batch=3), token_budget=WHOLE)
    assert change == "order"
    with reordered(name):
        return train(chain.lab, *method(chain, name), token_budget=WHOLE)


CLAIMS = {
    "one_by_one": "one prompt at a time (1×n) is one batch (n×1): weights to 1e-6",
    "budget": "any token budget gives the same weights, to 1e-6",
    "padded": "the padded layout, in any micro-batches, gives the weights of the flat one, to 1e-6",
    "order": "the order of the rows inside a step changes no weight beyond 1e-6",
}


def cases() -> Iterator[Any]:
    """All changes of all methods; those of one method stand together, for they share `whole`."""
    for which in ("chain", "lora_chain"):
        for name in METHODS:
            for change, said in CLAIMS.items():
                if (which, change) != ("lora_chain", "budget"):  # its padded run is cut by budget
                    mark = pytest.mark.conformance("equivalence", "every method", said)
                    yield pytest.param(which, name, change, marks=mark)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.update > 0.02
    assert one.differs(other) < TOLERANCE


@pytest.mark.parametrize(("which", "name", "change"), list(cases()))
def test_every_method_ends_in_the_same_weights(
    request: pytest.FixtureRequest, which: str, name: str, change: str
) -> None:
    chain: Chain = request.getfixturevalue(which)
    assert_same(whole(chain, name), trained(chain, name, change))


@pytest.mark.conformance(
    "equivalence", "PPO, GRPO and relatives", "the decoding batch changes no weight beyond 1e-6"
)
@pytest.mark.parametrize("name", ONLINE)
def test_rows_decoded_side_by_side_change_nothing(some_chain: Chain, name: str) -> None:
    assert_same(whole(some_chain, name), trained(some_chain, name, "decoding"))


@pytest.mark.conformance(
    "equivalence", "pretraining", "any token budget and order of rows gives the same weights"
)
@pytest.mark.parametrize("name", READING)
@pytest.mark.parametrize("change", ["one_by_one", "budget", "order"])
def test_pretraining_ends_in_the_same_weights(chain: Chain, name: str, change: str) -> None:
    assert_same(whole(chain, name), trained(chain, name, change))


def test_the_cases_are_not_empty(some_chain: Chain) -> None:
    """Clipping clips, KTO's KL point is above its clamp, and PPO's coefficient is adapted."""
    assert all(row["grad_norm"] > 1 for row in whole(some_chain, "sft").run.metrics("train"))
    assert all(row["kl_point"] > 0 for row in whole(some_chain, "kto").run.metrics("train"))
    ppo = whole(some_chain, "ppo").run.metrics("train")
    assert ppo[0]["kl"] != 0
    assert len({row["kl_coef"] for row in ppo if "kl_coef" in row}) == 2
    assert max(row["grad_norm"] for row in ppo) > 1


@catches("alignlab.stages.session", "count=self.count(chosen)", "count=self.count(part)")
@pytest.mark.parametrize("name", ["sft", "reward", "dpo", "kto"])
def test_a_mean_of_micro_batch_means_would_be_seen(chain: Chain, name: str) -> None:
    assert_same(whole(chain, name), trained(chain, name, "one_by_one"))


@catches(
    "alignlab.stages.online",
    "OnlinePack(batch, term, count, tokens)",
    "OnlinePack(batch, term, float(len(batch.target_ids)), tokens)",
)
@pytest.mark.parametrize("name", ["ppo", "dapo"])
def test_a_mean_of_rollout_means_would_be_seen(chain: Chain, name: str) -> None:
    assert_same(whole(chain, name), trained(chain, name, "one_by_one"))


@pytest.mark.conformance(
    "equivalence",
    "LoRA: DPO, KTO, PPO, GRPO",
    "views on one shared base train to the bits of views that share nothing",
)
@pytest.mark.parametrize("name", ["dpo", "kto", "ppo", "grpo"])
def test_a_shared_base_is_separate_copies(lora_chain: Chain, name: str) -> None:
    def forgotten() -> None:  # reference log-probs are to be computed, not read from the cache
        shutil.rmtree(lora_chain.lab.store.cache / "reference", ignore_errors=True)

    forgotten()
    shared = train(lora_chain.lab, *method(lora_chain, name))
    forgotten()
    with views_apart():
        apart = train(lora_chain.lab, *method(lora_chain, name))
    assert shared.update > 0.02
    assert shared.differs(apart) == 0
    summaries = [t.run.summary() for t in (shared, apart)]
    assert summaries[0] == summaries[1]


@pytest.mark.conformance(
    "equivalence",
    "LoRA: policy, reference, reward and value",
    "adapters on one base equal four whole models with the merged weights, to 1e-5",
)
def test_adapters_are_merged_copies(
    lora_chain: Chain, tmp_path: Path, record_property: Any
) -> None:
    from alignlab.models.backbone import Backbone
    from alignlab.models.export import export_model
    from alignlab.stages.online import token_outputs
    from alignlab.stages.reward import scores_of

    lab, ppo = lora_chain.lab, whole(lora_chain, "ppo").run
    groups = read(lora_chain.annotations, "train")
    found = []
    for adapter in (True, False):
        rank = {} if adapter else {"backbone__adapter__rank": None}
        stage, _ = method(lora_chain, "ppo", **rank)
        backbone = Backbone.load(stage.backbone, lab.store.cache)
        for view, run in (("policy", ppo), ("reference", early(lora_chain))):
            backbone.add(view, source=run.model_dir, trainable=False)
        for view in ("reward", "value"):
            backbone.add(view, source=lora_chain.reward.model_dir, trainable=False, head=True)

        def outputs(view: str, read: Any, backbone: Any = backbone) -> torch.Tensor:
            return torch.cat(token_outputs(backbone, view, groups, lab.engine, read))

        found.append(
            {
                "policy": outputs("policy", lambda v, b: v.logps(b)),
                "reference": outputs("reference", lambda v, b: v.logps(b)),
                "reward": scores_of(backbone, "reward", groups, lab.engine),
                "value": outputs("value", lambda v, b: v.values(b)),
            }
        )
    export_model(ppo.model_dir, tmp_path / "merged", lab.store.cache, merge=True)
    merged = plain_model(tmp_path / "merged", lab.store.cache)
    with torch.no_grad():
        exported = [token_logps(merged, g.prompt, c) for g in groups for c in g.completions]
    found[0]["exported"], found[1]["exported"] = found[0]["policy"], torch.cat(exported)
    difference = largest_difference(*found)
    record_property("measured", f"largest difference {difference:.0e}")
    assert difference < 1e-5
    assert float((found[0]["policy"] - found[0]["reference"]).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(
            "float32",
            1e-5,
            marks=pytest.mark.conformance(
                "equivalence",
                "PPO, GRPO and relatives",
                "the sampler's log-probs are the trainer's, to 1e-5, at temperatures 1 and 0.7",
            ),
        ),
        pytest.param(
            "bfloat16",
            0.05,
            marks=pytest.mark.conformance(
                "equivalence",
                "PPO, GRPO and relatives",
                "in bfloat16 the sampler's log-probs are the trainer's to 0.05 nats a token",
            ),
        ),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_sampler_says_what_the_trainer_says(
    some_chain: Chain,
    caught: Caught,
    name: str,
    temperature: float,
    dtype: str,
    tolerance: float,
    record_property: Any,
) -> None:
    from alignlab.stages.online import token_outputs

    stage, inputs = method(
        some_chain,
        name,
        iterations=1,
        optimizer__learning_rate=1e-30,  # the weights of the end are those that were sampled from
        sampling__temperature=temperature,
        backbone__dtype=dtype,
    )
    some_chain.lab.run(stage, inputs)
    experience = caught.work.experience

    def gap(at: float) -> float:
        again = token_outputs(
            caught.backbone,
            "policy",
            experience.groups,
            some_chain.lab.engine,
            lambda view, batch: view.logps(batch, temperature=at),
        )
        return float((torch.cat(experience.old) - torch.cat(again)).abs().max())

    record_property("measured", f"{gap(temperature):.0e}")
    assert gap(temperature) < tolerance
    assert gap(1.7 - temperature) > 0.3  # the other of the two temperatures


UNTRAINED = ("annotate", "annotate_by_reward", "evaluate")
# Planted in the processes: each must give other weights than one process.
BUGS = {
    "a loss divided by this process's own count": (
        "sft", "alignlab.stages.session", "self.count(chosen)", "self.count(mine)"
    ),
    "a KL point of this process's own rows": (
        "kto", "alignlab.stages.terms", "policy - self._reference().sums(groups))}",
        "engine.workers().share(policy - self._reference().sums(groups)))}",
    ),
    "passes that were shared out, put together process by process": (
        "bco", "alignlab.engine.dealt", "self.workers.whole(self.read(view, mine, read))",
        "[x for part in self.workers.gather(self.read(view, mine, read)) for x in part]",
    ),
    "gradients that are not summed": (
        "dpo", "alignlab.engine.update", "self.workers.sum_gradients_(self.parameters)", "pass"
    ),
}  # fmt: skip


@pytest.mark.scale
@pytest.mark.conformance(
    "equivalence",
    "every method, annotation, evaluation",
    "two processes (gloo) end in the weights of one, to 1e-6, each file written once",
)
def test_two_processes_are_one(
    chain: Chain, lora_chain: Chain, tmp_path: Path, record_property: Any
) -> None:
    chains = {"full": chain, "lora": lora_chain}
    cases = [
        *({"chain": "full", "method": name} for name in (*READING, *OFFLINE, *ONLINE)),
        *({"chain": "lora", "method": name} for name in ("sft", "reward", "dpo", "kto", *ONLINE)),
        *({"chain": "full", "method": name} for name in UNTRAINED),
        *({"chain": "full", "method": bug[0], "planted": bug[1:]} for bug in BUGS.values()),
    ]
    for number, case in enumerate(cases):
        case["key"] = f"two{number:03d}"
    plan = {"chains": {name: described(of) for name, of in chains.items()}, "cases": cases}
    start(tmp_path, {**plan, "token_budget": 90}, processes=2)

    largest = 0.0
    for case in cases:
        of, name = chains[case["chain"]], case["method"]
        run = of.lab.store.run(method(of, name)[0].kind, case["key"])
        assert run.verify() == []
        if name in UNTRAINED:
            assert_files_equal(of.lab.run(*method(of, name)), run)
            continue
        one = whole(of, name)
        difference = model_difference(one.run, run)
        if "planted" in case:
            assert difference > 1e-4, case
            continue
        largest = max(largest, difference)
        assert difference < TOLERANCE, case
        assert_lines_equal(one.run, run)
    record_property("measured", f"largest difference {largest:.0e}")
