"""PPO and GRPO with vLLM's rollouts, against stand-ins: no GPU was there to run the real one on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import Faults, install, served
from stage_lab import Chain, weight_hashes
from two_processes import described, start

from alignlab.errors import ConfigError, Interrupted, TrainingError

COLOCATED = {
    "_target_": "alignlab.rollout.vllm.Colocated",
    "gpu_memory": 0.3,
    "enforce_eager": False,
    "cap": 2.0,
    "max_gap": 0.02,
}
SERVER = {
    "_target_": "alignlab.rollout.vllm.Server",
    "timeout": 60.0,
    "batch": 4,
    "cap": 2.0,
    "max_gap": 0.02,
}
FAST = {
    "optimizer.learning_rate": 3e-2,
    "optimizer.eps": 1e-8,
    "sampling.max_new_tokens": 6,
    "max_completion": 6,
    "missing_eos_score": None,  # else all score alike, and nothing moves
}


def online(chain: Chain, name: str, rollout: Any, **changes: Any) -> Any:
    return chain.online(name, rollout=rollout, **FAST, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_weights_reach_the_sampler_before_every_rollout(
    name: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = install(monkeypatch, Faults())
    run = chain.lab.run(*online(chain, name, COLOCATED))
    # A policy that moved and was not sent would be far from what sampled: see the test below.
    rows = [row for row in run.metrics("train") if "sampler_gap_mean" in row]
    assert len(rows) == 2  # one for each iteration
    assert all(row["sampler_gap_mean"] < 1e-4 for row in rows)  # rounding between two layouts
    assert all(row["sampler_gap_max"] < 1e-2 for row in rows)
    assert all(row["importance"] == pytest.approx(1.0, abs=1e-4) for row in rows)
    assert all(row["importance_capped"] == 0 for row in rows)
    [opened] = seen.opened
    assert opened["logprobs_mode"] == "processed_logprobs"
    assert opened["gpu_memory_utilization"] == 0.3
    assert "enable_lora" not in opened
    assert (len(seen.loads), seen.resets) == (1, 2)  # the first rollout opened it
    assert len(set(seen.seeds)) == len(seen.seeds)  # every completion has a stream of its own
    assert not run.state_dir.exists()  # no weights are left behind


@pytest.mark.slow
def test_weights_that_do_not_arrive_are_noticed(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Faults(deaf=True))
    with pytest.raises(TrainingError, match="the weights did not arrive"):
        chain.lab.run(*online(chain, "grpo", COLOCATED))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo", "rloo"])
def test_the_gradient_is_weighted(name: str, chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    # A sampler that reports every log-probability 0.01 too low has weights e^0.01 = 1.01005, which
    # scale the policy's gradient; for RLOO, whose action is the completion, e^(0.01·length).
    loose = {**COLOCATED, "max_gap": 1.0}
    stage = "grpo" if name == "rloo" else name
    extra = {"optimizer.max_grad_norm": 1e9, "kl_coef": 0.0}
    extra |= {"ratio": "sequence"} if name == "rloo" else {}
    extra |= {"value_coef": 0.0} if name == "ppo" else {}
    first = {}
    for shift in (0.0, -0.01):
        install(monkeypatch, Faults(shift=shift))
        run = chain.lab.run(*online(chain, stage, loose, **extra))
        first[shift] = run.metrics("train")[0]
    exact, moved = first[0.0], first[-0.01]
    assert moved["sampler_gap_mean"] == pytest.approx(0.01, abs=1e-4)
    assert moved["completion_length"] == exact["completion_length"]  # the same samples
    if name == "rloo":
        assert moved["importance"] > math.exp(0.02)
        return
    assert moved["importance"] == pytest.approx(math.exp(0.01), rel=1e-4)
    assert moved["grad_norm"] / exact["grad_norm"] == pytest.approx(math.exp(0.01), rel=1e-3)


@pytest.mark.slow
def test_adapters_are_sent_alone(lora_chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = install(monkeypatch, Faults())
    run = lora_chain.lab.run(*online(lora_chain, "grpo", COLOCATED))
    rows = [row for row in run.metrics("train") if "sampler_gap_mean" in row]
    assert all(row["sampler_gap_mean"] < 1e-4 for row in rows)
    [opened] = seen.opened
    assert (opened["enable_lora"], opened["max_lora_rank"]) == (True, 4)
    assert len(seen.loads) == 2
    install(monkeypatch, Faults(deaf=True))
    with pytest.raises(TrainingError, match="the weights did not arrive"):
        lora_chain.lab.run(*online(lora_chain, "grpo", {**COLOCATED, "max_gap": 1e-3}))


@pytest.mark.slow
def test_a_server_gets_adapters_and_gives_samples(lora_chain: Chain, caught: Any) -> None:
    from alignlab.models.load import resolve

    stage, inputs = online(lora_chain, "grpo", {**SERVER, "url": "http://127.0.0.1:1"})
    base = str(resolve(stage.backbone.path, lora_chain.lab.store.cache))
    with served(base, Faults()) as (url, seen):
        stage, inputs = online(lora_chain, "grpo", {**SERVER, "url": url})
        run = lora_chain.lab.run(stage, inputs)
        assert len(seen.loads) == 2
        assert seen.unloads == seen.loads[:1]  # one adapter at a time
        assert all(name.startswith(run.name) for name in seen.loads)
        assert seen.requests == stage.iterations * stage.rollout_batch * stage.group
        rows = [row for row in run.metrics("train") if "sampler_gap_mean" in row]
        assert all(row["sampler_gap_mean"] < 1e-4 for row in rows)
    with served(base, Faults(deaf=True)) as (url, _):
        stage, inputs = online(lora_chain, "grpo", {**SERVER, "url": url, "max_gap": 1e-3})
        with pytest.raises(TrainingError, match="the weights did not arrive"):
            lora_chain.lab.run(stage, inputs)


@pytest.mark.slow
def test_a_server_that_is_not_there_is_named(lora_chain: Chain) -> None:
    stage, inputs = online(lora_chain, "grpo", {**SERVER, "url": "http://127.0.0.1:1"})
    with pytest.raises(ConfigError, match="no vLLM server answers at"):
        lora_chain.lab.run(stage, inputs)


@pytest.mark.slow
def test_full_weights_go_through_the_public_client_of_trl(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client itself needs NCCL; here one with its methods, in place of it.
    import trl.generation.vllm_client as module

    calls: list[str] = []

    class Client:
        def __init__(self, *, base_url: str, connection_timeout: float) -> None:
            calls.append(base_url)

        def init_communicator(self, device: Any) -> None:
            calls.append("communicator")

        def update_model_params(self, model: Any) -> None:
            calls.append(f"{sum(p.numel() for p in model.parameters())} weights")

        def reset_prefix_cache(self) -> None:
            calls.append("reset")

    monkeypatch.setattr(module, "VLLMClient", Client)
    install(monkeypatch, Faults())  # so that the package is there
    from alignlab.rollout.vllm_server import Remote

    answers: list[str] = []

    def ask(self: Remote, path: str, body: Any = None) -> Any:
        answers.append(path)
        if path == "/v1/models":
            return {"data": [{"id": "base"}]}
        raise TrainingError("enough")

    monkeypatch.setattr(Remote, "_ask", ask)
    with pytest.raises(TrainingError, match="enough"):
        chain.lab.run(*online(chain, "grpo", {**SERVER, "url": "http://127.0.0.1:1"}))
    assert calls[:2] == ["http://127.0.0.1:1", "communicator"]
    assert calls[2].endswith(" weights")
    assert int(calls[2].split()[0]) > 1000
    assert calls[3] == "reset"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_a_stage_that_was_stopped_in_a_rollout_goes_on(
    name: str, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The stand-in is a function of its seeds, so here the continuation is the same in bits.
    install(monkeypatch, Faults())
    stage, inputs = online(chain, name, COLOCATED)
    whole = chain.lab.run(stage, inputs)
    install(monkeypatch, Faults(stop_at=2))
    run = chain.lab.new_run(stage.kind)
    with pytest.raises(Interrupted):
        chain.lab.run(stage, inputs, run)
    install(monkeypatch, Faults())
    assert weight_hashes(chain.lab.run(stage, inputs, run)) == weight_hashes(whole)


@pytest.mark.scale
def test_two_processes_send_once_and_sample_each_their_share(
    lora_chain: Chain, tmp_path: Path
) -> None:
    from equivalence_cases import method

    from alignlab.models.load import resolve

    stage, _ = method(lora_chain, "grpo")
    base = str(resolve(stage.backbone.path, lora_chain.lab.store.cache))
    with served(base, Faults()) as (url, seen):
        changes = {"rollout": {**SERVER, "url": url}}
        case = {"chain": "lora", "method": "grpo", "key": "outside000", "changes": changes}
        plan = {"chains": {"lora": described(lora_chain)}, "token_budget": 4096, "cases": [case]}
        start(tmp_path, plan, 2)
    run = lora_chain.lab.store.run("grpo", "outside000")
    assert run.done
    assert len(seen.loads) == stage.iterations
    assert (
        seen.requests == stage.iterations * stage.rollout_batch * stage.group
    )  # each completion once
    rows = [row for row in run.metrics("train") if "sampler_gap_mean" in row]
    assert len(rows) == stage.iterations
    assert all(row["sampler_gap_mean"] < 1e-4 for row in rows)


def test_without_the_package_the_plan_is_refused(chain: Chain) -> None:
    with pytest.raises(ConfigError, match=r"alignlab\[gpu\]"):
        online(chain, "grpo", COLOCATED)
    with pytest.raises(ConfigError, match=r"adapter=full needs the package 'vllm'"):
        online(chain, "ppo", {**SERVER, "url": "http://x:1"})


def test_what_is_no_sampler_is_refused(chain: Chain) -> None:
    reward = {"_target_": "alignlab.rewards.functions.Length"}
    with pytest.raises(ConfigError, match="rollout"):
        online(chain, "grpo", reward)


def test_only_what_samples_is_in_the_key(lora_chain: Chain) -> None:
    from alignlab.keys import stage_key

    def key(rollout: Any) -> str:
        stage, _ = online(lora_chain, "grpo", rollout)
        return stage_key(stage, "", {})

    here = {**SERVER, "url": "http://a:1"}
    assert key(here) == key({**SERVER, "url": "http://b:2", "batch": 64})
    assert key(here) != key({**here, "cap": 3.0})
    assert key(here) != key(None)
