"""Bandits through the real stages: what each method converges to, against its closed form.

A model with nine tokens says one of them (the end token is an arm like any other), and a table
rewards it. Every policy over the arms is within reach, so a method ends where its fixed point is:

    DPO, one preference           the preferred arm alone
    IPO                           log π(a)/π(b) = log π_ref(a)/π_ref(b) + 1/(2τ)
    PPO, RLOO (KL in the reward)  π ∝ π_ref e^{r/β}
    GRPO, k2's gradient           π ∝ π_ref e^{A/β}
    GRPO, k3 as in the paper      π = β π_ref / (λ − A), λ such that it sums to 1

A is the expected advantage of an arm: r − E[r] against the others of its group, that times
(n − 1)/n against the mean of a group of n, and Σ over all groups of n for the standardised one.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from closed_forms import distance, reversed_tilt, tilted
from scipy.stats import chisquare
from stage_lab import Lab, PlainHead, objective, plain_model

from alignlab.compose import conf_dir
from alignlab.objectives.divergence import best_of_n_kl
from alignlab.run import Run
from alignlab.stages.annotate import read

SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>")
TOKENS = (*SPECIALS, *"abcdxy")  # digits and spaces have no token: they only tell prompts apart
PROMPTS = ("x", "y")  # the two situations that the policy can be in
TABLE = {"a": 1.0, "b": 0.5, "c": -0.5, "d": 0.25}  # all else is worth 0
REWARD = np.array([TABLE.get(token, 0.0) for token in TOKENS])
BETA = 0.5

# Rates that fall to zero, so that the noise of sampling averages out.
TUNED = {
    "optimizer__learning_rate": 2e-2,
    "optimizer__eps": 1e-8,
    "optimizer__schedule": "linear",
}


def make_model(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIALS))
    pad, bos, eos = SPECIALS
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=bos, eos_token=eos
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        initializer_range=0.25,  # far from uniform: arms between 1 and 33 percent
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def write_rows(path: Path, rows: list[tuple[str, list[str], list[float]]]) -> None:
    """Rows of (prompt, completions, scores), each prompt's text made unique by a number."""
    lines = [
        json.dumps({"prompt": f"{i} {prompt}", "completions": texts, "scores": scores})
        for i, (prompt, texts, scores) in enumerate(rows)
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def relative(name: str) -> dict[str, Any]:
    """What conf/stage/<name>.yaml changes about GRPO; nothing for GRPO itself."""
    file = conf_dir() / "stage" / f"{name}.yaml"
    changes = yaml.safe_load(file.read_text(encoding="utf-8")) if name != "grpo" else {}
    return {k: v for k, v in changes.items() if k != "defaults"}


def rewards(table: dict[str, float]) -> dict[str, Any]:
    """A reward function that reads the table: Σ value · [the completion is that arm]."""
    return {
        "_target_": "alignlab.rewards.mixture.Mixture",
        "terms": [
            {
                "weight": value,
                "reward": {
                    "_target_": "alignlab.rewards.verifiable.Matches",
                    "pattern": text,
                    "whole": True,
                    "ignore_case": False,
                },
            }
            for text, value in table.items()
        ],
    }


@dataclass
class World:
    lab: Lab
    sft: Run  # the reference: the random model, not trained
    folder: Path

    def policy(self, run: Run, prompt: str, *said: int) -> np.ndarray:
        """Probability of every next token (V,), by transformers alone."""
        model = plain_model(run.model_dir, self.lab.store.cache)
        ids = torch.tensor([[1, TOKENS.index(prompt), *said]])
        with torch.no_grad():
            return model(input_ids=ids).logits[0, -1].softmax(-1).numpy()

    def online(
        self, kind: str, iterations: int, tokens: int = 1, table: Any = None, **changes: Any
    ) -> Run:
        """A run of an online method from the reference, with the table as its reward."""
        settings = {**TUNED, "kl_coef": BETA, "missing_eos_score": None, **changes}
        if kind == "ppo":
            settings = {"rollout_batch": 64, "lam": 1.0, "value_coef": 0.5, **settings}
        else:
            settings = {**relative(kind), "rollout_batch": 4, "group": 32, **settings}
        stage = self.lab.stage(
            "ppo" if kind == "ppo" else "grpo",
            inputs={"init": "sft", "reference": "sft"},
            reward=rewards(TABLE if table is None else table),
            iterations=iterations,
            max_completion=tokens,
            sampling__max_new_tokens=tokens,
            **settings,
        )
        return self.lab.run(stage, {"init": self.sft, "reference": self.sft})

    def annotated(self, name: str, rows: list[tuple[str, list[str], list[float]]]) -> Run:
        """An annotate run over given preferences, one token per completion."""
        write_rows(self.folder / f"{name}.jsonl", rows)
        lab = make_lab(self.folder, name, "data.validation=0", "data.test=0")
        lab = replace(lab, store=self.lab.store, numbers=self.lab.numbers)
        stage = lab.stage("annotate", prompts=len(rows), max_completion=1, validation_share=0.0)
        run = lab.run(stage, {"policy": self.sft})
        assert all([len(c) == 1 for c in g.completions] == [1, 1] for g in read(run, "train"))
        return run

    def prefer(self, annotations: Run, steps: int, target: str, **hyper: Any) -> Run:
        """A run of a preference method, every preference in every step."""
        stage = self.lab.stage(
            "dpo",
            objective={**objective(target), **hyper},
            batch=len(read(annotations, "train")),
            steps=steps,
            **TUNED,
        )
        roles = {"init": self.sft, "reference": self.sft, "annotations": annotations}
        return self.lab.run(stage, roles)


def make_lab(folder: Path, name: str, *overrides: str) -> Lab:
    return Lab.make(
        folder,
        "backbone=hub",
        f"backbone.path={folder / 'model'}",
        "backbone.dtype=float32",
        "reward@gold=matches",
        "gold.pattern=a",
        *overrides,
        data=folder / f"{name}.jsonl",
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bandit")
    make_model(folder / "model")
    write_rows(folder / "data.jsonl", [(p, ["a", "b"], [1.0, 0.0]) for p in PROMPTS * 40])
    lab = make_lab(folder, "data")
    # One step at a rate that moves no weight: the reference is the random model itself.
    sft = lab.run(lab.stage("sft", steps=1, max_completion=1, optimizer__learning_rate=1e-20), {})
    return World(lab, sft, folder)


@cache
def groups_around(levels: tuple[float, ...], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All choices of the other ``n − 1`` samples of a group: how many of each level (K, L), in how
    many orders (K,), and the standardised advantage of one more sample of each level (K, L)."""
    counts = list(compositions(n - 1, len(levels)))
    ways = [math.factorial(n - 1) / math.prod(map(math.factorial, count)) for count in counts]
    advantages = np.zeros((len(counts), len(levels)))
    for row, count in enumerate(counts):
        others = [v for v, k in zip(levels, count, strict=True) for _ in range(k)]
        for column, value in enumerate(levels):
            group = [*others, value]
            if len(set(group)) > 1:  # all equal: nothing to compare
                advantages[row, column] = value - np.mean(group)
                advantages[row, column] /= np.std(group, ddof=1) + 1e-4
    return np.array(counts), np.array(ways), advantages


def standardised(policy: np.ndarray, gain: np.ndarray, n: int) -> np.ndarray:
    """E[(r − mean)/(std + 1e-4)] of an arm, over all groups of ``n`` samples of which one is it."""
    levels, place = np.unique(gain, return_inverse=True)
    chance = np.bincount(place, weights=policy)
    counts, ways, advantages = groups_around(tuple(levels.tolist()), n)
    weight = ways * (chance**counts).prod(axis=1)
    return (weight @ advantages)[place]


def compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write ``total`` as an ordered sum of ``parts`` numbers from 0."""
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        yield from ((first, *rest) for rest in compositions(total - first, parts - 1))


Form = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def settled(
    reference: np.ndarray, form: Form, advantage: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The policy that is its own answer: π = form(π_ref, A(π), β), by damped iteration."""
    policy = reference
    for _ in range(80):
        policy = 0.5 * policy + 0.5 * form(reference, advantage(policy), BETA)
    assert distance(policy, form(reference, advantage(policy), BETA)) < 1e-6
    return policy


# ------------------------------------------------------------------------ online methods, one token
@pytest.fixture(scope="module")
def optimal(world: World) -> Run:
    """Where RLOO ends."""
    return world.online("rloo", 120)


def from_the_tilted_reference(world: World, run: Run) -> float:
    """Total variation between a policy and π_ref e^{r/β}/Z, the larger of both situations."""
    found = []
    for prompt in PROMPTS:
        reference = world.policy(world.sft, prompt)
        best = tilted(reference, REWARD, BETA)
        assert distance(reference, best) > 0.2  # the way was long
        found.append(distance(world.policy(run, prompt), best))
    return max(found)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "RLOO",
    "a bandit ends at π_ref·e^{r/β}/Z, total variation under 0.003 (stage run)",
)
def test_rloo_becomes_the_tilted_reference(
    world: World, optimal: Run, record_property: Callable[[str, object], None]
) -> None:
    found = from_the_tilted_reference(world, optimal)
    record_property("measured", f"total variation {found:.4f}")
    assert found < 0.003


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "tolerance"),
    [
        pytest.param(
            "ppo",
            {"iterations": 120, "whiten_advantages": False, "ppo_epochs": 1, "minibatches": 1},
            0.003,
            id="PPO",
            marks=pytest.mark.conformance(
                "closed form",
                "PPO",
                "a bandit ends at π_ref·e^{r/β}/Z, total variation under 0.003 (stage run)",
            ),
        ),
        pytest.param(
            "ppo",
            {"iterations": 80, "ppo_epochs": 2, "minibatches": 2, "lam": 0.95},
            0.03,
            id="PPO whitened",
            marks=pytest.mark.conformance(
                "closed form",
                "PPO",
                "with whitened advantages and two epochs the same optimum: under 0.03 (stage run)",
            ),
        ),
        pytest.param(
            "grpo",
            {
                "iterations": 120,
                "advantage": "leave_one_out",
                "kl_estimator": "k3_gradient_k2",
                "group": 64,
            },
            0.03,
            id="GRPO k3_gradient_k2",
            marks=pytest.mark.conformance(
                "closed form",
                "GRPO (k3_gradient_k2)",
                "with the gradient of k2 and unscaled advantages a bandit ends at"
                " π_ref·e^{r/β}/Z, total variation under 0.03 (stage run)",
            ),
        ),
    ],
)
def test_the_policy_becomes_the_tilted_reference(
    world: World,
    kind: str,
    settings: dict[str, Any],
    tolerance: float,
    record_property: Callable[[str, object], None],
) -> None:
    found = from_the_tilted_reference(world, world.online(kind, **settings))
    record_property("measured", f"total variation {found:.4f}")
    assert found < tolerance


@pytest.mark.slow
@pytest.mark.difference(
    method="GRPO",
    point="what k3 in the loss converges to",
    equation="β·(e^d − 1 − d), d = log π_ref − log π (2402.03300 eq. 4)",
    ours="as printed; on-policy its gradient is that of KL(π_ref ‖ π), so π = β π_ref/(λ − A)."
    " kl_estimator: k3_gradient_k2 gives π_ref e^{A/β}/Z",
    trl="k3 times the importance ratio (use_bias_correction_kl), so π_ref e^{A/β}/Z",
    halos="–",
    original="as printed",
)
@pytest.mark.conformance(
    "closed form",
    "GRPO (k3)",
    "with the paper's k3 in the loss a bandit ends at β·π_ref/(λ − r), far from π_ref·e^{r/β}/Z"
    " (stage run)",
)
def test_k3_in_the_loss_has_another_optimum(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    run = world.online("grpo", 120, advantage="leave_one_out", kl_estimator="k3", group=64)
    found, apart = [], []
    for prompt in PROMPTS:
        reference, policy = world.policy(world.sft, prompt), world.policy(run, prompt)
        found.append(distance(policy, reversed_tilt(reference, REWARD, BETA)))
        apart.append(distance(policy, tilted(reference, REWARD, BETA)))
    record_property(
        "measured",
        f"total variation {max(found):.4f}, {max(apart):.2f} from the tilted reference",
    )
    assert max(found) < 0.02
    assert max(apart) > 0.3  # an arm of 3 percent under the reference gets half of the policy


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "GRPO",
    "as configured (standardised in groups of 8, k3) a bandit ends at β·π_ref/(λ − A), A the"
    " expected advantage over all groups of 8 (stage run)",
)
def test_grpo_as_configured(world: World, record_property: Callable[[str, object], None]) -> None:
    run = world.online("grpo", 160, rollout_batch=24, group=8)
    found, apart = [], []
    for prompt in PROMPTS:
        reference, policy = world.policy(world.sft, prompt), world.policy(run, prompt)
        best = settled(reference, reversed_tilt, lambda p: standardised(p, REWARD, 8))
        found.append(distance(policy, best))
        apart.append(distance(policy, reversed_tilt(reference, REWARD, BETA)))
    record_property("measured", f"total variation {max(found):.4f}")
    assert max(found) < 0.02
    assert max(apart) > 0.1  # where β means what it says


# ----------------------------------------------------------------------------- two tokens, with EOS
def sentences(world: World, run: Run, prompt: str) -> dict[tuple[int, ...], float]:
    """Probability of every completion of at most two tokens; EOS ends one."""
    end, first = TOKENS.index("<|eos|>"), world.policy(run, prompt)
    every = {(end,): float(first[end])}
    for token in range(len(TOKENS)):
        if token != end:
            second = world.policy(run, prompt, token)
            every |= {
                (token, last): float(first[token] * second[last]) for last in range(len(TOKENS))
            }
    assert sum(every.values()) == pytest.approx(1)
    return every


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "PPO and RLOO",
    "over sentences of one or two tokens, reward on the whole: π_ref(y)·e^{r(y)/β}/Z (stage run)",
)
@pytest.mark.parametrize("kind", ["ppo", "rloo"])
def test_sentences_become_the_tilted_reference(
    world: World, kind: str, record_property: Callable[[str, object], None]
) -> None:
    table = {"aa": 1.0, "ab": -1.0, "ba": 1.5, "a": 0.5, "": -0.5}  # the end at once costs ½
    sizes = {"rollout_batch": 128, "ppo_epochs": 1, "minibatches": 1}
    settings = sizes if kind == "ppo" else {}
    run = world.online(kind, 150, tokens=2, table=table, **settings)
    found = []
    for prompt in PROMPTS:
        reference, policy = (sentences(world, r, prompt) for r in (world.sft, run))
        texts = {y: "".join(TOKENS[t] for t in y if t > 2) for y in reference}
        gain = np.array([table.get(texts[y], 0.0) for y in reference])
        best = tilted(np.array(list(reference.values())), gain, BETA)
        start = distance(np.array(list(reference.values())), best)
        found.append(distance(np.array([policy[y] for y in reference]), best))
        assert start > 0.1
    record_property("measured", f"{kind}: total variation {max(found):.4f}")
    assert max(found) < 0.03


# -------------------------------------------------------------------------------------- preferences
A, B, C = (TOKENS.index(letter) for letter in "abc")


@pytest.fixture(scope="module")
def certain(world: World) -> Run:
    """In both situations a is always preferred to b."""
    return world.annotated("certain", [(p, ["a", "b"], [1.0, 0.0]) for p in PROMPTS])


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "DPO",
    "one certain preference: the policy becomes deterministic, whatever β (stage run)",
)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_becomes_deterministic(world: World, certain: Run, beta: float) -> None:
    gaps = []
    for steps in (30, 120):
        run = world.prefer(certain, steps, "dpo", beta=beta)
        policies = [world.policy(run, prompt) for prompt in PROMPTS]
        gaps.append(min(math.log(p[A] / p[B]) for p in policies))
    assert all(p[A] / (p[A] + p[B]) > 1 - 1e-5 for p in policies)
    assert gaps[1] > gaps[0] + 1  # and goes on: no finite gap is a minimum


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "IPO",
    "one certain preference: the log-ratio gap stops at 1/(2τ), under a uniform reference the"
    " preference at σ(1/(2τ)) (stage run)",
)
@pytest.mark.parametrize(
    ("name", "tau"),
    [("ipo_sum", 0.1), ("ipo_sum", 0.5), ("ipo_sum", 1.0), ("ipo", 0.5)],  # one token: the same
)
def test_ipo_stops_at_half_inverse_tau(
    world: World,
    certain: Run,
    name: str,
    tau: float,
    record_property: Callable[[str, object], None],
) -> None:
    run = world.prefer(certain, 200, name, tau=tau)
    found = []
    for prompt in PROMPTS:
        policy, reference = world.policy(run, prompt), world.policy(world.sft, prompt)
        gap = math.log(policy[A] / policy[B]) - math.log(reference[A] / reference[B])
        found.append(abs(gap - 1 / (2 * tau)))
        # what a uniform reference would make of this policy's gap: 0.993, 0.731, 0.622
        even = 1 / (1 + math.exp(-gap))
        assert even == pytest.approx({0.1: 0.9933, 0.5: 0.7311, 1.0: 0.6225}[tau], abs=1e-3)
    record_property("measured", f"τ = {tau}: off by {max(found):.0e} nats")
    assert max(found) < 1e-3


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "DPO and RLOO",
    "preferences drawn from Bradley–Terry rewards, and the rewards themselves: the same policy"
    " π_ref·e^{r/β}/Z (stage runs)",
)
def test_dpo_and_rloo_agree_where_the_preferences_are_those_of_the_reward(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    # strengths 4 : 2 : 1, so P(a ≻ b) = 4/6, P(b ≻ c) = 2/3, P(a ≻ c) = 4/5, each pair 15 times
    strength, beta = {"a": 4, "b": 2, "c": 1}, 0.7
    rows = []
    for prompt in PROMPTS:
        for one, other in (("a", "b"), ("b", "c"), ("a", "c")):
            wins = round(15 * strength[one] / (strength[one] + strength[other]))
            rows += [(prompt, [one, other], [1.0, 0.0])] * wins
            rows += [(prompt, [one, other], [0.0, 1.0])] * (15 - wins)
    preferred = world.prefer(world.annotated("odds", rows), 200, "dpo", beta=beta)
    table = {letter: math.log(s) for letter, s in strength.items()}
    rewarded = world.online("rloo", 120, table=table, kl_coef=beta)
    arms = [A, B, C]
    gain = np.array([table[TOKENS[arm]] for arm in arms])
    found = []
    for prompt in PROMPTS:
        best = tilted(world.policy(world.sft, prompt)[arms], gain, beta)
        for run in (preferred, rewarded):
            policy = world.policy(run, prompt)[arms]
            found.append(distance(policy / policy.sum(), best))
    record_property("measured", f"total variation {max(found):.4f}")
    assert max(found) < 0.005


# --------------------------------------------------------------------- what the evaluation reports
def evaluated(world: World, policy: Run, reward: Run | None = None, **changes: Any) -> Run:
    inputs = {"policy": policy, "reference": world.sft} | ({"reward": reward} if reward else {})
    stage = world.lab.stage(
        "evaluate_sft",
        split="validation",
        prompts=8,
        max_completion=1,
        sampling__max_new_tokens=1,
        inputs=dict.fromkeys(inputs, "sft"),
        **changes,
    )
    return world.lab.run(stage, inputs)


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "KL of the evaluation",
    "the reported KL(π ‖ π_ref) is the exact sum over the arms within 4 standard errors, and at the"
    " optimum E[r]/β − log Z",
)
def test_the_reported_kl_is_the_exact_one(
    world: World, optimal: Run, record_property: Callable[[str, object], None]
) -> None:
    run = evaluated(world, optimal, samples=400, best_of=1, seed=5)
    rows, expected, variance = run.samples(), 0.0, 0.0
    for prompt, count in Counter(row["prompt"][-1] for row in rows).items():
        new, reference = world.policy(optimal, prompt), world.policy(world.sft, prompt)
        ratio = np.log(new / reference)
        exact = (new * ratio).sum()
        expected += count * exact / len(rows)
        variance += count * ((new * ratio**2).sum() - exact**2) / len(rows) ** 2
        # log π* − log π_ref = r/β − log Z, so the optimum's KL is E[r]/β − log Z
        normaliser = (reference * np.exp(REWARD / BETA)).sum()
        closed = (new * REWARD).sum() / BETA - math.log(normaliser)
        assert exact == pytest.approx(closed, abs=0.01)
    error = abs(run.summary()["kl"] - expected)
    record_property("measured", f"{run.summary()['kl']:.3f} for {expected:.3f} nats")
    assert expected > 0.2
    assert error < 4 * variance**0.5
    assert 4 * variance**0.5 < 0.3 * expected


def chances_of_best(probability: np.ndarray, score: np.ndarray, n: int) -> np.ndarray:
    """P(arm is the best of n): F(arm)ⁿ − F(below)ⁿ, F the distribution of the score."""
    up_to = np.array([probability[score <= s].sum() for s in score])
    below = np.array([probability[score < s].sum() for s in score])
    return up_to**n - below**n


def scores_of_arms(world: World, reward: Run, prompt: str) -> np.ndarray:
    """The reward model's score of every arm (V,), by transformers and plain arithmetic."""
    model = plain_model(reward.model_dir, world.lab.store.cache)
    head, ids = PlainHead.load(reward.model_dir), [1, TOKENS.index(prompt)]
    with torch.no_grad():
        return np.array([float(head.along(model, ids, [a])[-1]) for a in range(len(TOKENS))])


@pytest.fixture(scope="module")
def proxy(world: World, certain: Run) -> Run:
    """A reward model that has seen little: every arm has a score of its own."""
    stage = world.lab.stage("reward", steps=3, **TUNED)
    return world.lab.run(stage, {"init": world.sft, "annotations": certain})


@pytest.mark.slow
@pytest.mark.conformance(
    "closed form",
    "best of n",
    "what the evaluation keeps is distributed as F(y)ⁿ − F(y⁻)ⁿ (χ²), its KL is below"
    " log n − (n − 1)/n, and it beats one sample as often as it must, below n/(n + 1) with ties",
)
@pytest.mark.parametrize("n", [2, 4, 8])
def test_best_of_n(
    world: World, proxy: Run, n: int, record_property: Callable[[str, object], None]
) -> None:
    best = evaluated(world, world.sft, proxy, samples=250, best_of=n, seed=11).samples()
    single = evaluated(world, world.sft, proxy, samples=250, best_of=1, seed=12).samples()
    wins, exact_wins = [], []
    for prompt in PROMPTS:
        # Arms are told by their scores: pad, BOS and EOS all read as no text.
        score, chance = scores_of_arms(world, proxy, prompt), world.policy(world.sft, prompt)
        assert np.diff(np.sort(score)).min() > 1e-3
        kept, others = (
            np.array([r["proxy"] for r in rows if r["prompt"][-1] == prompt])
            for rows in (best, single)
        )
        assert min(len(kept), len(others)) >= 500
        place = np.abs(score[:, None] - kept).argmin(0)
        assert np.abs(score[place] - kept).max() < 1e-4
        expected = chances_of_best(chance, score, n)
        assert expected.sum() == pytest.approx(1)
        seen, wanted = np.bincount(place, minlength=len(score)), expected * len(kept)
        rare = wanted < 5  # too few for χ², so they are counted together
        observed, wanted = (np.append(x[~rare], x[rare].sum()) for x in (seen, wanted))
        assert chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 0.001
        kl = (expected * np.log(expected / chance)).sum()
        assert 0.5 * best_of_n_kl(n) < kl < best_of_n_kl(n)
        half_won = (np.sign(score[:, None] - score) + 1) / 2
        exact_wins.append(float(expected @ half_won @ chance))
        assert 0.9 * n / (n + 1) < exact_wins[-1] < n / (n + 1)
        wins.append(float((np.sign((kept[:, None] - others).round(4)) + 1).mean() / 2))
    record_property("measured", f"n = {n}: wins {np.mean(wins):.3f} for {np.mean(exact_wins):.3f}")
    assert wins == pytest.approx(exact_wins, abs=0.03)  # 4 standard errors of 500 samples
