"""Every method as a stage over the runs of a chain, and what its training did to the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from stage_lab import OBJECTIVES, Chain, Lab, largest_difference, objective
from torch import Tensor

from alignlab.compose import compose, conf_dir
from alignlab.plan import build_stage
from alignlab.run import Run
from alignlab.stages.stage import Stage

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone


def relatives(base: str) -> dict[str, dict[str, Any]]:
    """The stages of conf/stage that are ``base`` with other values, and those values."""
    found = {}
    for path in sorted((conf_dir() / "stage").glob("*.yaml")):
        changes = yaml.safe_load(path.read_text(encoding="utf-8"))
        if base in changes.pop("defaults", []):
            found[path.stem] = changes
    return found


RELATIVES = relatives("grpo")
# Every view, with and without a reference, every statistic of a step. The other objectives differ
# from one of these in their formula alone, and the laws of objectives hold them to any packing.
PREFERENCE = (
    *("cdpo", "dpo", "dpo_norm", "hinge", "ipo", "ipo_sum", "kto", "orpo", "rdpo", "simpo", "slic"),
    *("bco", "dpo_ranking", "rrhf"),
)
OFFLINE = ("sft", "reward", *PREFERENCE)
ONLINE = ("ppo", "ppo_ptx", "grpo", *RELATIVES, "online_dpo")
METHODS = (*OFFLINE, *ONLINE)
READING: dict[str, Callable[[Chain], tuple[Stage, dict[str, Run]]]] = {
    "pretrain": lambda chain: (pretraining(chain.lab), {}),
    "continued_pretrain": lambda chain: (reading_on(chain.lab), {"init": early(chain)}),
}
CLIPPED = ("sft", "ppo", "ipo", "ipo_sum")  # the gradients of IPO are 10 to 300 here


def method(chain: Chain, name: str, **changes: Any) -> tuple[Stage, dict[str, Run]]:
    """A short stage by ``name`` (mostly a training) and its inputs.

    The reference is an earlier model than the start, so that no log-ratio is zero and KTO's KL
    point is positive. Seven prompts a step over some nineteen: no two processes share them evenly,
    and the third step crosses the end of an epoch. The online methods sample twice, at a
    temperature that is not one, and make two updates of each rollout. Few clip their gradients,
    because clipping would hide a gradient that is a multiple of the right one.
    """
    if name in METHODS and name not in CLIPPED:
        changes = {"optimizer__max_grad_norm": None, **changes}
    if name in READING:
        return READING[name](chain)
    if name == "annotate":
        return chain.lab.stage("annotate", validation_share=0.2, **changes), chain.inputs("policy")
    if name == "annotate_by_reward":
        roles = {"policy": "sft", "reward": "reward"}
        stage = chain.lab.stage("annotate", inputs=roles, prompts=9, **changes)
        return stage, chain.inputs("policy", "reward")
    if name == "evaluate":
        stage = chain.lab.stage("evaluate_sft", best_of=2, split="validation", **changes)
        return stage, {**chain.inputs("policy", "reference", "reward")}
    if name == "sft":
        return chain.lab.stage("sft", **{"batch": 7, **changes}), {}
    if name == "reward":
        stage = chain.lab.stage("reward", **{"batch": 7, **changes})
        return stage, chain.inputs("init", "annotations")
    if name in OBJECTIVES:
        own = {"objective": objective(name), "pairs": "all", "batch": 7}
        stage, inputs = chain.prefer(**{**own, **changes})
        return stage, {**inputs, "reference": early(chain)}
    if name in ("ppo", "ppo_ptx"):
        own = {"minibatches": 2, "kl_target": 0.5, "kl_horizon": 50}
        if name == "ppo_ptx":
            own |= {"ptx_coef": 1.0, "ptx_rows": 6}
        stage, inputs = chain.online("ppo", **{**own, "sampling__temperature": 1.1, **changes})
        return stage, {**inputs, "reference": early(chain)}
    if name == "online_dpo":
        own = {"rollout_batch": 6, "completions": 3, "updates": 2, "sampling__temperature": 1.1}
        stage, inputs = chain.online("online_dpo", **{**own, "missing_eos_score": None, **changes})
        return stage, {**inputs, "reference": early(chain)}
    own = {**RELATIVES.get(name, {}), "rollout_batch": 6, "updates": 2}
    own["sampling__temperature"] = 1.1
    stage, inputs = chain.online("grpo", **{**own, **changes})
    return stage, {**inputs, "reference": early(chain)}


def early(chain: Chain) -> Run:
    """An SFT run of one step, made once."""
    run = chain.lab.store.run("sft", "early")
    return run if run.done else chain.lab.run(chain.lab.stage("sft", steps=1), {}, run)


def pretraining(lab: Lab) -> Stage:
    """Three steps on the lab's texts, as conf/stage/pretrain.yaml has it but for the size."""
    path = lab.configs["sft"]["data"]["path"]
    shares = ["data.validation=0.1", "data.test=0.1"]
    config = compose(["experiment=smoke", "pipeline=pretrain", f"data.path={path}", *shares])
    node = dict(config["stages"]["pretrain"])
    node["architecture"] = {
        "vocabulary": 300,
        "hidden": 32,
        "intermediate": 48,
        "layers": 2,
        "heads": 4,
        "key_value_heads": 2,
        "context": 64,
    }
    node["optimizer"] = {**node["optimizer"], "learning_rate": 1e-2, "eps": 1e-3, "warmup": 0}
    node |= {"dtype": "float32", "window": 12, "batch": 7, "tokens": 230, "evaluate_every": 0}
    return build_stage(node, "stages.pretrain")


def reading_on(lab: Lab) -> Stage:
    """A few steps of continued pretraining on the lab's texts, into a second epoch."""
    path = lab.configs["sft"]["data"]["path"]
    own = ["data@documents=file", f"documents.path={path}"]
    shares = ["documents.validation=0.1", "documents.test=0.1"]
    config = compose(["experiment=smoke", "pipeline=continued_pretrain", *own, *shares])
    node = {**config["stages"]["continued"], "backbone": lab.configs["sft"]["backbone"]}
    node["optimizer"] = {**node["optimizer"], "learning_rate": 1e-2, "eps": 1e-3, "warmup": 0}
    node |= {"window": 12, "batch": 17, "tokens": None, "epochs": 1.2}
    return build_stage(node, "stages.continued")


@dataclass(frozen=True)
class Trained:
    """A finished run and all trained parameters, ``view/name``, before and after."""

    run: Run
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    @property
    def update(self) -> float:
        """The largest change of any weight."""
        return largest_difference(self.before, self.after)

    def differs(self, other: Trained) -> float:
        """Largest difference of any weight after the two trainings."""
        return largest_difference(self.after, other.after)


def train(
    lab: Lab, stage: Stage, inputs: Mapping[str, Run], run: Run | None = None, **engine: Any
) -> Trained:
    """Execute a stage that trains; the value view of PPO is kept too, which no file holds."""
    import alignlab.engine.loop as loop

    kept: list[dict[str, Tensor]] = []
    loop_train = loop.train

    def keeping(work: Any, backbone: Any, views: Sequence[str], **named: Any) -> Any:
        def weights() -> dict[str, Tensor]:
            own = {view: backbone.trainable_parameters(view) for view in views}
            return {f"{v}/{n}": p.detach().clone() for v in own for n, p in own[v].items()}

        kept.append(weights())
        result = loop_train(work, backbone, views, **named)
        kept.append(weights())
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", keeping)
        run = lab.run(stage, inputs, run, **engine)
    return Trained(run, *kept)


def backwards(items: Sequence[Any]) -> list[Any]:
    """The last first: another order whenever there are two."""
    return list(reversed(items))


@contextmanager
def reordered(name: str) -> Iterator[None]:
    """The rows of every optimizer step come in another order.

    KTO pairs each prompt of a step with the completions of the next and the last with the first, so
    its rows keep their neighbours: the circle is only entered elsewhere.
    """
    from alignlab.stages import grpo_work, ppo_work, session

    def rows_in(order: Callable[[Sequence[Any]], list[Any]]) -> Callable[..., list[int]]:
        straight = session.step_rows
        return lambda *given: order(straight(*given))

    def packed_in_another_order(room: Any) -> Callable[..., Any]:
        straight = room.pack_experience
        return lambda experience, chosen, *rest, **named: straight(
            experience, backwards(chosen), *rest, **named
        )

    with pytest.MonkeyPatch.context() as patch:
        turned = (lambda rows: [*rows[3:], *rows[:3]]) if name == "kto" else backwards
        patch.setattr(session, "step_rows", rows_in(turned))
        for room in (ppo_work, grpo_work):
            patch.setattr(room, "pack_experience", packed_in_another_order(room))
        yield


class Apart:
    """A backbone whose views share nothing: each of them is alone in a `Backbone` of its own."""

    def __init__(self, open_one: Callable[[], Backbone]) -> None:
        self.open_one = open_one
        self.parts: dict[str, Backbone] = {}
        empty = open_one()
        self.tokenizer, self.layout, self.dtype_name = (
            empty.tokenizer,
            empty.layout,
            empty.dtype_name,
        )
        self.config, self.place, self.sharding = empty.config, empty.place, empty.sharding

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.parts)

    def add(self, name: str, **how: Any) -> None:
        self.parts[name] = self.open_one()
        self.parts[name].add(name, **how)

    def has(self, name: str) -> bool:
        return name in self.parts

    def drop(self, name: str) -> None:
        del self.parts[name]

    def train_mode(self, on: bool) -> None:
        for part in self.parts.values():
            part.train_mode(on)

    def changing(self, views: Sequence[str]) -> None:
        """Nothing but the optimizer changes plain adapters."""

    def __getattr__(self, call: str) -> Callable[..., Any]:
        """Every other call names its view first."""
        return lambda name, *rest, **how: getattr(self.parts[name], call)(name, *rest, **how)


@contextmanager
def views_apart() -> Iterator[None]:
    """Stages open an `Apart` in place of one backbone."""
    from alignlab.stages import session

    straight = session.open_backbone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            session,
            "open_backbone",
            lambda *given, **named: Apart(lambda: straight(*given, **named)),
        )
        yield
