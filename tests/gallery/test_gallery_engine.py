"""The gallery of silent bugs: the training loop, the optimizer, checkpoints, adapters and runs.

Every test is named after a bug that other projects had and says in which public thread it is known.
It runs a second time with that bug planted in our own source, where it must fail.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from mutation import catches
from safetensors.torch import load_file, save_file
from stage_lab import (
    Caught,
    Chain,
    PlainAdamW,
    largest_difference,
    plain_model,
    token_logps,
    weight_hashes,
    weights,
)
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from alignlab.data.order import step_rows
from alignlab.engine.state import TrainState
from alignlab.errors import ConfigError, TrainingError
from alignlab.launch.execute import execute
from alignlab.launch.task import Place, Task
from alignlab.models.backbone import Backbone
from alignlab.models.load import resolve
from alignlab.plan import Plan
from alignlab.rollout.unfinished import rollout_file
from alignlab.run import Run, Store
from alignlab.stages import sft
from alignlab.stages.annotate import read
from alignlab.stages.reward import scores_of
from alignlab.stages.session import open_backbone

SMALL = 40  # tokens of a micro-batch: a step of SFT is cut into three or more


def train(chain: Chain, *, token_budget: int = 4096, **changes: Any) -> Run:
    """A few steps of supervised fine-tuning."""
    stage = chain.lab.stage("sft", **changes)
    return chain.lab.run(stage, {}, token_budget=token_budget)


def start(chain: Chain) -> dict[str, Tensor]:
    """The weights that SFT starts from, named as those of a run."""
    folder = resolve("random:tiny", chain.lab.store.cache)
    [file] = folder.glob("*.safetensors")
    return {f"{file.name}/{name}": value for name, value in load_file(file).items()}


def timeless(run: Run) -> list[dict[str, Any]]:
    """Metric lines without what a clock wrote."""
    clocks = ("time", "tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in run.metrics()]


# Accumulation


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "loss normalised per micro-batch under gradient accumulation",
    "a step cut into micro-batches gives the weights of the whole step",
    issue="huggingface/transformers#34191",
)
@catches("alignlab.stages.session", "count=self.count(chosen)", "count=self.count(part)")
def test_loss_normalised_per_micro_batch(chain: Chain, record_property: Any) -> None:
    """huggingface/transformers#34191, huggingface/trl#2175: a mean of unlike means."""
    runs = [train(chain, steps=3, token_budget=b) for b in (SMALL, 4096)]
    difference = largest_difference(*map(weights, runs))
    assert difference < 1e-5
    record_property("measured", f"largest difference {difference:.0e}")


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "gradients clipped per micro-batch",
    "the norm that is clipped is the one of the whole step's gradient",
    issue="huggingface/transformers#1563",
)
@catches(
    "alignlab.engine.update",
    "        self.workers.backward(loss)\n",
    "        self.workers.backward(loss)\n        clip(self.parameters, self.max_norm)\n",
)
def test_gradients_clipped_per_micro_batch(chain: Chain) -> None:
    """huggingface/transformers#1563, facebookresearch/lingua#59: clipped once per backward."""
    runs = [
        train(chain, steps=2, optimizer__max_grad_norm=0.1, token_budget=budget)
        for budget in (SMALL, 4096)
    ]
    assert largest_difference(*map(weights, runs)) < 1e-5
    cut, whole = (row["grad_norm"] for run in runs for row in run.metrics("train")[:1])
    assert cut == pytest.approx(whole, rel=1e-5)
    assert cut > 0.1  # so that clipping was at work


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "gradients of all micro-batches but the last are thrown away",
    "every micro-batch of a step reaches the optimizer",
    issue="tatsu-lab/alpaca_farm#57",
)
@catches(
    "alignlab.engine.loop",
    "    for micro in micros:\n",
    "    for micro in micros:\n        state.optimizer.zero_grad(set_to_none=True)\n",
)
def test_zero_grad_per_micro_batch(chain: Chain) -> None:
    """tatsu-lab/alpaca_farm#57, bytetriper/RAE#67: zero_grad inside the accumulation."""
    runs = [train(chain, steps=2, token_budget=b) for b in (SMALL, 4096)]
    assert largest_difference(*map(weights, runs)) < 1e-5


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "gradients are never zeroed",
    "three steps of SFT are three steps of AdamW, each on the gradient of its own batch",
    issue="meta-pytorch/torchforge#71",
)
@catches("alignlab.engine.update", "self.optimizer.zero_grad(set_to_none=True)", "pass")
def test_gradients_never_zeroed(chain: Chain, caught: Caught) -> None:
    """meta-pytorch/torchforge#71: the gradient of a step held those of all steps before."""
    stage = chain.lab.stage("sft", steps=3)
    run = chain.lab.run(stage, {})
    model = plain_model(resolve("random:tiny", chain.lab.store.cache), chain.lab.store.cache)
    optimizer = PlainAdamW.like(stage, list(model.parameters()))
    groups = caught.work.groups
    for step in range(3):
        chosen = [groups[r] for r in step_rows(step, stage.batch, len(groups), stage.seed)]
        logps = [token_logps(model, g.prompt, g.completions[0]) for g in chosen]
        optimizer.step(-torch.cat(logps).mean())
    plain = {f"model.safetensors/{n}": p.detach() for n, p in model.named_parameters()}
    assert largest_difference(weights(run), plain) < 1e-5


# Schedule and optimizer


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "learning-rate schedule under accumulation",
    "the schedule counts optimizer steps, and ends with the last of them",
    issue="huggingface/accelerate#963",
)
@catches(
    "alignlab.engine.loop",
    "optimizer.set_rate(state.optimizer, step, steps)",
    "optimizer.set_rate(state.optimizer, min(steps, step * len(work.micros(step))), steps)",
)  # a step of the schedule per micro-batch
@catches(
    "alignlab.engine.loop",
    "optimizer.set_rate(state.optimizer, step, steps)",
    "optimizer.set_rate(state.optimizer, step, steps * len(work.micros(step)))",
)  # a schedule as long as the micro-batches
def test_schedule_under_accumulation(chain: Chain) -> None:
    """huggingface/accelerate#963 steps too often; huggingface/diffusers#4387 is too long."""
    line = {"optimizer__schedule": "linear", "optimizer__warmup": 2, "optimizer__floor": 0.0}
    run = train(chain, steps=6, token_budget=SMALL, **line)
    rates = [row["learning_rate"] for row in run.metrics("train")]
    # 2 steps up to the peak of 0.01, then down by a quarter of it: progress 0, 1/4, 2/4, 3/4
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.conformance(
    "silent bug",
    "the first step of a warm-up does nothing",
    "every step moves the weights, the first one of a warm-up too",
    issue="verl-project/verl#3674",
)
@catches("alignlab.engine.schedule", "return step / warm", "return (step - 1) / warm")
def test_first_step_of_a_warm_up(chain: Chain) -> None:
    """verl-project/verl#3674, huggingface/transformers#34754: a learning rate of 0."""
    assert largest_difference(weights(train(chain, steps=1, optimizer__warmup=4)), start(chain)) > 0


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "weight decay on norms and biases",
    "parameters with fewer than two dimensions are not decayed",
    issue="ServiceNow/Fast-LLM#542",
)
@catches(
    "alignlab.engine.groups",
    "weight_decay if dimensions(parameter) >= 2 else 0.0",
    "weight_decay",
)
def test_weight_decay_on_norms(chain: Chain) -> None:
    """ServiceNow/Fast-LLM#542: a refactoring put the norms among what is decayed."""
    plain, decayed = (
        weights(train(chain, steps=1, optimizer__weight_decay=decay)) for decay in (0.0, 0.5)
    )
    for name, value in plain.items():
        assert torch.equal(value, decayed[name]) == (value.ndim < 2), name


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "a loss that is not finite goes on silently",
    "training stops at the step, names the batch, and has not touched the weights",
    issue="huggingface/trl#6702",
)
@catches("alignlab.engine.update", "        if not broken:\n", "        if broken < 2:\n")
def test_nan_loss_goes_on(chain: Chain, caught: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface/trl#6702: NaN steps were applied, and the logged loss was the earlier mean."""
    loss, seen, stopped = sft.loss, [], ""

    def poisoned(view: Any, packed: Any, **smoothing: Any) -> Any:
        value, metrics = loss(view, packed, **smoothing)
        seen.append({k: v.detach().clone() for k, v in live(caught).items()})
        return (value * float("nan") if len(seen) == 3 else value), metrics

    with monkeypatch.context() as patch:
        patch.setattr(sft, "loss", poisoned)
        try:
            train(chain, steps=4)
        except TrainingError as error:
            stopped = str(error)
    assert "is not finite at step 3" in stopped
    assert largest_difference(live(caught), seen[2]) == 0


def live(caught: Caught) -> dict[str, Tensor]:
    return dict(caught.backbone.trainable_parameters("policy"))


# The moving average


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the average of the weights is kept but not saved",
    "with an average configured, the saved model is the average",
    issue="wandb/senpai#709",
)
@catches("alignlab.engine.state", "            self.ema.swap_in()\n", "            pass\n")
def test_ema_weights_not_saved(chain: Chain) -> None:
    """wandb/senpai#709: validation measured the average, the checkpoint held the raw weights."""
    before, after = start(chain), weights(train(chain, steps=1))
    average = weights(train(chain, steps=1, optimizer__ema=0.5))
    expected = {name: (before[name] + after[name]) / 2 for name in after}
    assert largest_difference(average, expected) < 1e-7
    assert largest_difference(after, before) > 1e-3


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "training goes on from the averaged weights",
    "evaluating the average leaves the weights that are trained as they were",
    issue="harubaru/waifu-diffusion#31",
)
@catches("alignlab.engine.optimizer", "parameter.detach().copy_(weights)", "pass")
def test_training_on_from_the_average(chain: Chain) -> None:
    """harubaru/waifu-diffusion#31: how often one saved changed what was learned."""
    often, never = (train(chain, steps=4, optimizer__ema=0.9, evaluate_every=n) for n in (1, 0))
    assert weight_hashes(often) == weight_hashes(never)


# Evaluation inside the loop


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "evaluation in train mode",
    "dropout is off while the loop evaluates",
    issue="huggingface/trl#3416",
)
@catches(
    "alignlab.engine.state",
    "        self.backbone.train_mode(False)\n        self.owes_evaluation",
    "        self.owes_evaluation",
)
def test_evaluation_in_train_mode(lora_chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface/trl#3416: the flag of train and evaluation mode flipped on the way."""
    measured = []
    mean_nll = sft.mean_nll

    def twice(*args: Any) -> float:
        measured.append((mean_nll(*args), mean_nll(*args)))
        return measured[-1][0]

    with monkeypatch.context() as patch:
        patch.setattr(sft, "mean_nll", twice)
        train(lora_chain, steps=2, evaluate_every=1, backbone__adapter__dropout=0.5)
    assert len(measured) == 3  # two evaluations, and the one of the summary
    assert all(one == other for one, other in measured)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "how often one evaluates changes the training",
    "an evaluation leaves the random streams of training as they were",
    issue="karpathy/char-rnn#17",
)
@catches("alignlab.engine.state", "checkpoint.set_rng_state(states)", "pass")
def test_evaluation_changes_the_training(
    lora_chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """karpathy/char-rnn#17, marin-community/marin#7712: it depended on the interval."""
    with monkeypatch.context() as patch:
        patch.setattr(sft, "mean_nll", lambda *_: float(torch.rand(())))  # it draws, as samplers do
        dropout = {"backbone__adapter__dropout": 0.3, "steps": 4}
        often, never = (train(lora_chain, evaluate_every=n, **dropout) for n in (1, 0))
    assert weight_hashes(often) == weight_hashes(never)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "evaluation loss as a mean of batch means",
    "the held-out loss is a mean over tokens, whatever the batches",
    issue="huggingface/transformers#41898",
)
@catches(
    "alignlab.stages.sft",
    "return -sum(sums) / sum(counts)",
    "return -sum(total / count for total, count in zip(sums, counts)) / len(sums)",
)
def test_evaluation_loss_as_mean_of_means(chain: Chain) -> None:
    """huggingface/transformers#41898, keras-team/keras-hub#2958: short batches weighed too much."""
    groups = read(chain.annotations, "train")[:5]
    backbone = Backbone.load(chain.lab.stage("sft").backbone, chain.lab.store.cache)
    backbone.add("policy", source=chain.sft.model_dir, trainable=False)
    model = plain_model(chain.sft.model_dir, chain.lab.store.cache)
    with torch.no_grad():
        tokens = torch.cat([token_logps(model, g.prompt, c) for g in groups for c in g.completions])
    found = sft.mean_nll(
        backbone, "policy", groups, dataclasses.replace(chain.lab.engine, token_budget=SMALL)
    )
    assert found == pytest.approx(-float(tokens.double().mean()), abs=1e-5)
    several = {"data__validation": 0.3}  # more than one batch to take a mean of
    cut, whole = (train(chain, steps=1, token_budget=b, **several).summary() for b in (SMALL, 4096))
    assert cut["validation_nll"] == pytest.approx(whole["validation_nll"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "metrics as means of micro-batch means",
    "logged metrics are sums over counts, over micro-batches and steps",
    issue="keras-team/keras-hub#2958",
)
@catches(
    "alignlab.engine.metrics",
    "(before + _exact(total), seen + _exact(count))",
    "(before + _exact(total) / _exact(count), seen + 1.0)",
)
def test_metrics_as_means_of_means(chain: Chain) -> None:
    """keras-team/keras-hub#2958: unlike numbers of tokens got the same weight."""
    for log_every in (1, 3):
        stage = chain.lab.stage("sft", steps=3)
        cut, whole = (
            chain.lab.run(stage, {}, token_budget=b, log_every=log_every).metrics("train")
            for b in (SMALL, 4096)
        )
        assert [r["nll"] for r in cut] == pytest.approx([r["nll"] for r in whole], abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "early stopping that keeps the wrong weights",
    "the weights of the best evaluation are saved, in the direction that was asked for",
    issue="NTMC-Community/MatchZoo-py#154",
)
@catches("alignlab.engine.state", "            self.patience.restore()\n", "            pass\n")
@catches("alignlab.engine.stopping", 'if self.rule.mode == "max"', 'if self.rule.mode == "min"')
def test_early_stopping_keeps_the_wrong_weights(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NTMC-Community/MatchZoo-py#154: training stopped at the right time, with the last weights."""
    rule = {"metric": "nll", "mode": "min", "patience": 2, "min_delta": 0.0}
    script: Iterator[float] = iter([3.0, 1.0, 2.0, 2.5])
    with monkeypatch.context() as patch:
        patch.setattr(sft, "mean_nll", lambda *_: next(script, 9.0))
        run = train(chain, steps=8, evaluate_every=1, early_stopping=rule)
    assert run.record["updates"] == 4
    assert weight_hashes(run) == weight_hashes(train(chain, steps=2))


# Resume


class PowerCut(Exception):
    """The process dies here."""


def cut_short(
    chain: Chain, stage: Any, inputs: Mapping[str, Run], step: int, *, saved: bool = True
) -> Run:
    """The run of a training that died at ``step``, after or before it saved a checkpoint."""
    run, save = chain.lab.new_run(stage.kind), TrainState.save

    def dying(self: TrainState, *args: Any) -> None:
        if self.step < step or saved:
            save(self, *args)
        if self.step == step:
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "save", dying)
        with pytest.raises(PowerCut):
            chain.lab.run(stage, inputs, run, checkpoint_every_seconds=0, keep_checkpoints=2)
    torch.manual_seed(12345)  # another process is in another random state
    return run


def resumed(chain: Chain, stage: Any, inputs: Mapping[str, Run], step: int, **named: Any) -> Run:
    run = cut_short(chain, stage, inputs, step, **named)
    return chain.lab.run(stage, inputs, run)


@pytest.fixture(scope="module")
def straight() -> Callable[..., Run]:
    """Runs that nobody disturbed, each made once: no bug of resuming touches them."""
    made: dict[str, Run] = {}

    def run(chain: Chain, stage: Any, inputs: Mapping[str, Run] | None = None) -> Run:
        key = f"{chain.lab.store.root} {stage}"
        if key not in made:
            made[key] = chain.lab.run(stage, inputs or {})
        return made[key]

    return run


def sft_stage(chain: Chain, **changes: Any) -> Any:
    return chain.lab.stage("sft", steps=5, **changes)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "data order lost on resume",
    "a resumed run sees the rows that it would have seen",
    issue="verl-project/verl#3457",
)
@catches(
    "alignlab.stages.session",
    "        return step_rows(step - 1,",
    "        self.__dict__.setdefault('seen', []).append(step)\n"
    "        return step_rows(len(self.__dict__['seen']) - 1,",
)  # a data loader whose place is not in the checkpoint
def test_data_order_lost_on_resume(chain: Chain, straight: Callable[..., Run]) -> None:
    """verl-project/verl#3457, modelscope/ms-swift#10050: rows seen twice, others never."""
    stage = sft_stage(chain)
    assert weight_hashes(resumed(chain, stage, {}, 2)) == weight_hashes(straight(chain, stage))


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "optimizer state lost on resume",
    "AdamW goes on with its moments and its step count",
    issue="KempnerInstitute/KempnerForge#115",
)
@catches(
    "alignlab.engine.update", "for name, updates in moved.items():", "for name, updates in ():"
)
def test_optimizer_state_lost_on_resume(chain: Chain, straight: Callable[..., Run]) -> None:
    """KempnerInstitute/KempnerForge#115: the moments were dropped without a word."""
    stage = sft_stage(chain)
    assert weight_hashes(resumed(chain, stage, {}, 3)) == weight_hashes(straight(chain, stage))


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "dropout masks lost on resume",
    "a resumed run draws the dropout masks that it would have drawn",
    issue="huggingface/transformers#17032",
)
@catches("alignlab.engine.state", 'checkpoint.set_rng_state(own["rng"])', "pass")
def test_random_state_lost_on_resume(lora_chain: Chain, straight: Callable[..., Run]) -> None:
    """huggingface/transformers#17032: the saved random state was not read."""
    stage = sft_stage(lora_chain, backbone__adapter__dropout=0.3)
    whole = straight(lora_chain, stage)
    assert weight_hashes(resumed(lora_chain, stage, {}, 3)) == weight_hashes(whole)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "learning-rate schedule begins again on resume",
    "the rate of a step is a function of the step",
    issue="starVLA/starVLA#210",
)
@catches(
    "alignlab.engine.loop",
    "optimizer.set_rate(state.optimizer, step, steps)",
    "optimizer.set_rate(state.optimizer, step - first + 1, steps)",
)
def test_schedule_begins_again_on_resume(chain: Chain, straight: Callable[..., Run]) -> None:
    """starVLA/starVLA#210: a spike of the learning rate after every restart."""
    stage = sft_stage(chain, optimizer__schedule="cosine")
    run, whole = resumed(chain, stage, {}, 3), straight(chain, stage)
    rates = [[row["learning_rate"] for row in r.metrics("train")] for r in (run, whole)]
    assert rates[0] == rates[1]
    assert weight_hashes(run) == weight_hashes(whole)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the average of the weights lost on resume",
    "a resumed average is the one that was saved",
    issue="m2lines/Samudra#312",
)
@catches(
    "alignlab.engine.state",
    'self.ema.load(list(self.update.mine(tensors, "average").values()))',
    "pass",
)
def test_average_lost_on_resume(chain: Chain, straight: Callable[..., Run]) -> None:
    """m2lines/Samudra#312: after a restart the average began again from the raw weights."""
    stage = sft_stage(chain, optimizer__ema=0.9)
    assert weight_hashes(resumed(chain, stage, {}, 3)) == weight_hashes(straight(chain, stage))


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "a step done twice after a resume",
    "a resumed run does every step once, and writes each line once",
    issue="hiyouga/EasyR1#57",
)
@catches("alignlab.engine.loop", "state.resume(run) + 1", "max(state.resume(run), 1)")
@catches("alignlab.engine.state", "run.rewind(self.step)", "pass")
def test_a_step_done_twice(chain: Chain, straight: Callable[..., Run]) -> None:
    """hiyouga/EasyR1#57: trained again on what was before the checkpoint."""
    stage = sft_stage(chain)
    run = resumed(chain, stage, {}, 3, saved=False)  # the line of step 3 was written already
    whole = straight(chain, stage)
    assert timeless(run) == timeless(whole)
    assert weight_hashes(run) == weight_hashes(whole)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the KL controller begins again on resume",
    "an adaptive KL coefficient goes on from where it was",
    issue="verl-project/verl#2653",
)
@catches(
    "alignlab.stages.ppo_work",
    'self.kl_coef, self.sampled = state["kl_coef"], state["sampled"]',
    'self.sampled = state["sampled"]',
)
def test_kl_controller_lost_on_resume(chain: Chain, straight: Callable[..., Run]) -> None:
    """verl-project/verl#2653, ray-project/ray#22444: the coefficient of the configuration again."""
    stage, inputs = chain.online("ppo", iterations=3, kl_target=0.5, kl_horizon=20)
    run, whole = resumed(chain, stage, inputs, 4), straight(chain, stage, inputs)
    assert run.summary() == whole.summary()
    assert weight_hashes(run) == weight_hashes(whole)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "rollouts in use lost on resume",
    "a run that died between two updates of a rollout goes on with the same rollout",
    issue="allenai/open-instruct#910",
)
@catches(
    "alignlab.stages.ppo_work",
    'self.iteration, self.experience = state["iteration"], state["experience"]',
    "pass",
)
@catches(
    "alignlab.stages.grpo_work",
    'self.iteration, self.experience = state["iteration"], state["experience"]',
    "pass",
)
def test_rollouts_lost_on_resume(chain: Chain, straight: Callable[..., Run]) -> None:
    """allenai/open-instruct#910: reward curves that went on differently after a restart."""
    for name in ("ppo", "grpo"):
        changes = {"updates": 2} if name == "grpo" else {}
        stage, inputs = chain.online(name, iterations=2, **changes)
        run, whole = cut_short(chain, stage, inputs, 3), straight(chain, stage, inputs)
        rollout_file(run.state_dir, 0).unlink()  # which would stand in for what is lost
        assert weight_hashes(chain.lab.run(stage, inputs, run)) == weight_hashes(whole)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "a damaged checkpoint is trusted because it is the newest",
    "a checkpoint whose files are not those of its manifest is passed over",
    issue="RLinf/RLinf#1469",
)
@catches("alignlab.engine.checkpoint", "fault = _fault(path)", "fault = None")
def test_a_damaged_checkpoint_is_trusted(lora_chain: Chain, straight: Callable[..., Run]) -> None:
    """RLinf/RLinf#1469, sgl-project/SpecForge#659: killed while saving, resumed from the rest."""
    stage = sft_stage(lora_chain, backbone__adapter__dropout=0.3)
    run = cut_short(lora_chain, stage, {}, 3)
    older, newest = sorted(run.state_dir.glob("step-*"))
    shutil.copy(older / "worker-0.pt", newest / "worker-0.pt")  # readable, and of another step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lora_chain.lab.run(stage, {}, run)
    assert weight_hashes(run) == weight_hashes(straight(lora_chain, stage))


# Adapters, heads and files


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "gradient checkpointing with an adapter switch",
    "recomputed activations are those of the adapter that went forward",
    issue="huggingface/peft#2832",
)
@catches(
    "alignlab.engine.loop",
    "            update.backward(loss, micro.view)\n        losses.append(loss.detach())\n"
    "        metrics.add(measured)\n",
    "        losses.append(loss)\n        metrics.add(measured)\n"
    "    for loss in losses:\n        update.backward(loss, micro.view)\n",
)  # all forward passes first, then all backward passes
def test_gradient_checkpointing_with_an_adapter_switch(lora_chain: Chain) -> None:
    """huggingface/peft#2832: the backward pass recomputes with whatever adapter is active then."""
    runs = []
    for on in (False, True):
        stage, inputs = lora_chain.online("ppo", backbone__gradient_checkpointing=on)
        try:
            runs.append(lora_chain.lab.run(stage, inputs))
        except CheckpointError as error:  # torch sees it where the layers of views differ
            raise AssertionError("recomputed with another adapter") from error
    assert largest_difference(*map(weights, runs)) < 1e-5
    assert largest_difference(weights(runs[0]), weights(lora_chain.sft)) > 1e-3


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "activating one adapter freezes the others",
    "trained views stay trainable and frozen ones frozen, whichever is active",
    issue="huggingface/peft#2759",
)
@catches(
    "alignlab.models.adapters",
    "parameter.requires_grad_(self._trainable[other])",
    "parameter.requires_grad_(parameter.requires_grad)",
)
def test_activating_an_adapter_freezes_the_others(lora_chain: Chain, caught: Caught) -> None:
    """huggingface/peft#2759: set_adapter couples "active" with "requires a gradient"."""
    stage, inputs = lora_chain.online("ppo", iterations=1)
    lora_chain.lab.run(stage, inputs)
    trained = {"policy", "value"}
    for active in caught.backbone.views:
        with caught.backbone.view(active) as view:
            for name, parameter in view.model.named_parameters():
                if ".lora_" in name:
                    owner = name.split(".lora_")[1].split(".")[1].removesuffix("_view")
                    assert parameter.requires_grad == (owner in trained), (active, name)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the wrong adapter is saved",
    "the saved adapter is the policy, though other adapters were active last",
    issue="huggingface/peft#699",
)
@catches(
    "alignlab.models.adapters",
    "adapter_name=self._key(name), save_embedding_layers=False",
    "adapter_name=self._key(self._active), save_embedding_layers=False",
)
def test_the_wrong_adapter_is_saved(lora_chain: Chain, caught: Caught) -> None:
    """huggingface/peft#699: several adapters on one model, and which one becomes the file?"""
    stage, inputs = lora_chain.online("ppo", iterations=1)
    saved = weights(lora_chain.lab.run(stage, inputs))
    prefix = "adapter_model.safetensors/base_model.model."
    assert largest_difference(saved, {prefix + k: v for k, v in live(caught).items()}) == 0


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "a reward model's head or normalisation is not saved",
    "a reward run that is opened again gives the scores that it gave when it was trained",
    issue="huggingface/trl#1379",
)
@catches("alignlab.models.backbone", "self._heads[name].save(folder)", "pass", raises=ConfigError)
@catches(
    "alignlab.models.heads",
    'self.register_buffer("gain", torch.ones((), dtype=torch.float32))',
    'self.register_buffer("gain", torch.ones((), dtype=torch.float32), persistent=False)',
)
def test_reward_head_not_saved(chain: Chain, caught: Caught) -> None:
    """huggingface/trl#1379, #1650: "score.weight newly initialized", and PPO ran all the same."""
    stage = chain.lab.stage("reward")
    run = chain.lab.run(stage, chain.inputs("init", "annotations"))
    groups, engine = caught.work.groups, chain.lab.engine
    again = open_backbone(stage.backbone, chain.lab.new_run("reward"), engine, 0)
    again.add("reward", source=run.model_dir, trainable=False, head=True)
    before = scores_of(caught.backbone, "reward", groups, engine)
    assert torch.allclose(scores_of(again, "reward", groups, engine), before, atol=1e-6)


@pytest.mark.conformance(
    "silent bug",
    "a tied head is lost in the saved model",
    "a saved model with tied embeddings has the logits of the one in memory",
    issue="huggingface/transformers#45127",
)
@catches(
    "alignlab.models.copies",
    "self._models[name].save_pretrained(folder)",
    "self._models[name].config.tie_word_embeddings = False;"
    " self._models[name].save_pretrained(folder)",
)
def test_a_tied_head_is_lost(chain: Chain, caught: Caught) -> None:
    """huggingface/transformers#45127, huggingface/peft#2972: the flag and the weights disagreed."""
    run = train(chain, steps=2)
    ids = torch.tensor([[1, 40, 50, 60, 70]])
    with torch.no_grad(), caught.backbone.view("policy") as view:
        expected = view.model(input_ids=ids).logits
        saved = plain_model(run.model_dir, chain.lab.store.cache)(input_ids=ids).logits
    assert torch.allclose(saved, expected.double(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "the same seed gives another model",
    "fresh adapters depend on the seed alone, not on what ran before in the process",
    issue="hiyouga/LlamaFactory#5588",
)
@catches(
    "alignlab.models.backbone", 'torch.manual_seed(int.from_bytes(digest[:4], "little"))', "pass"
)
def test_the_same_seed_gives_another_model(lora_chain: Chain) -> None:
    """hiyouga/LlamaFactory#5588: one to two points between runs of one seed."""
    runs = []
    for before in (1, 2):
        torch.manual_seed(before)
        runs.append(train(lora_chain, steps=2))
    assert weight_hashes(runs[0]) == weight_hashes(runs[1])


# Runs


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "an unfinished run is taken for a finished one",
    "a run folder without DONE is worked on again, whatever it holds",
    issue="vllm-project/speculators#739",
)
@catches("alignlab.launch.execute", "if run.done:", "if run.model_dir.is_dir():")
def test_an_unfinished_run_is_trusted(chain: Chain, tmp_path: Path) -> None:
    """vllm-project/speculators#739: any folder with the right name was a checkpoint."""
    root = tmp_path / f"runs-{time.monotonic_ns()}"
    task = task_of(chain, root, steps=1)
    assert execute(task, print).status == "done"
    run = Store(root).run(task.kind, task.key)
    whole = weights(run)
    (run.path / "DONE").unlink()  # as after a kill in the last moment …
    file = run.model_dir / "model.safetensors"
    torn = {k: torch.zeros_like(v) for k, v in load_file(file).items()}
    save_file(torn, file, metadata={"format": "pt"})  # … in the middle of writing the model
    execute(task, print)
    assert largest_difference(weights(run), whole) == 0


def task_of(chain: Chain, root: Path, steps: int) -> Task:
    """SFT of so many steps as a planned stage of a store."""
    config = {**chain.lab.configs["sft"], "steps": steps}
    plan = Plan.from_configs([{"seed": 0, "stages": {"sft": config}}], Store(root))
    [node] = plan.nodes.values()
    place = Place(
        store=str(root),
        study="gallery",
        engine=dataclasses.asdict(chain.lab.engine),
        tracking={"mode": "disabled", "project": "gallery", "entity": None},
    )
    return Task.of(node, place)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "two processes train the same run",
    "a second process waits for the first, and takes its result",
    issue="broadinstitute/CellBender#241",
)
@catches("alignlab.lease", "if current and self._alive(current):", "if current < 0:")
def test_two_owners_of_one_run(tmp_path: Path) -> None:
    """broadinstitute/CellBender#241: jobs started together overwrote each other's checkpoint."""
    path = tmp_path / f"toy-{time.monotonic_ns()}"
    trained = []

    def work() -> bool:
        with Run(path).claim(lambda _: None, poll=0.01) as run:
            if not run.done:
                trained.append(time.monotonic())
                time.sleep(0.2)
                run.finish()
        return run.done

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work) for _ in range(2)]
    assert [str(future.exception()) for future in futures] == ["None", "None"]
    assert [future.result() for future in futures] == [True, True]
    assert len(trained) == 1
