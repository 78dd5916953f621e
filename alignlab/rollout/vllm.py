"""Rollouts by vLLM: what is configured, and what a stage samples with in place of its own decoding.

vLLM computes with kernels of its own, so its log-probabilities μ differ from the trainer's π by
rounding. The trainer's are measured again on what was sampled, and every token of the loss is
weighted with min(π/μ, cap), truncated importance sampling (Ionides 2008; for language models Yao et
al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").

Run here against stand-ins only: a class in place of ``vllm.LLM`` and an HTTP server on this
machine. It has not been run on a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

from alignlab.errors import ConfigError, TrainingError
from alignlab.spec import Spec, build
from alignlab.typed import Range

if TYPE_CHECKING:
    import numpy as np

    from alignlab.models.backbone import Backbone
    from alignlab.models.techniques import Technique
    from alignlab.rollout.sampler import Samples
    from alignlab.rollout.sampling import Sampling
    from alignlab.rollout.weights import Together

PACKAGE = "vllm"
# Of the fields below those that say where and how fast, and not what: in no key of a stage.
WHERE = frozenset(f"rollout.{name}" for name in ("url", "timeout", "batch", "gpu_memory"))


@dataclass(frozen=True)
class Asked:
    """One request: completions of prompts, each with a seed of its own."""

    prompts: Sequence[np.ndarray]
    n: int
    sampling: Sampling
    stop: tuple[int, ...]  # token ids that end a completion
    seeds: Sequence[int]  # one per prompt

    @property
    def rows(self) -> list[tuple[list[int], int]]:
        """Prompt and seed of every completion, prompt-major."""
        return [
            (prompt.tolist(), (seed + 1_000_003 * sample) % 2**62)
            for prompt, seed in zip(self.prompts, self.seeds, strict=True)
            for sample in range(self.n)
        ]


class Sampler(Protocol):
    """What samples in place of the own decoding."""

    cap: float
    max_gap: float

    def sync(self, backbone: Backbone, view: str, workers: Together) -> None:
        """Make it sample from the weights that the view has now; every process calls it."""

    def sample(self, asked: Asked) -> Samples:
        """Sample; log-probabilities are those of the sampler."""


@dataclass(frozen=True, kw_only=True)
class Colocated:
    """vLLM in the process that trains."""

    gpu_memory: Annotated[float, Range(min=0, max=1, min_open=True)]
    enforce_eager: bool
    cap: Annotated[float, Range(min=1)]
    max_gap: Annotated[float, Range(min=0, min_open=True)]

    def check(self, *, adapter: bool) -> None:
        """Refuse it where vLLM is not installed.

        Raises:
            ConfigError: as said.
        """
        _require_package("rollout=vllm")

    def open(self, folder: Path, longest: int) -> Sampler:
        """Make the sampler; ``longest`` is a prompt with its answer, in tokens."""
        from alignlab.rollout.vllm_engine import Inside

        return Inside(self, folder, longest)


@dataclass(frozen=True, kw_only=True)
class Server:
    """vLLM as a server of its own."""

    url: str
    timeout: Annotated[float, Range(min=0, min_open=True)]
    batch: Annotated[int, Range(min=1)]
    cap: Annotated[float, Range(min=1)]
    max_gap: Annotated[float, Range(min=0, min_open=True)]

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url={self.url!r}: expected http://HOST:PORT of a vLLM server.")

    def check(self, *, adapter: bool) -> None:
        """Refuse full weights without vLLM: they go to the server over NCCL, by vLLM's own code.

        Raises:
            ConfigError: as said.
        """
        if not adapter:
            _require_package("rollout=vllm_server with adapter=full")

    def open(self, folder: Path, longest: int) -> Sampler:
        """Make the sampler; ``folder`` is where adapters wait, which the server must see."""
        from alignlab.rollout.vllm_server import Remote

        return Remote(self, folder)


def _require_package(what: str) -> None:
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"{what} needs the package 'vllm', which is not installed: pip install 'alignlab[gpu]'."
        )


def check_rollout(rollout: Spec | None, technique: Technique) -> None:
    """Refuse a sampler that cannot be had here, when the plan is made.

    Raises:
        ConfigError: it is none, a package is missing, or it cannot compute what is trained.
    """
    if rollout is None:
        return
    found = build(rollout)
    if not isinstance(found, Colocated | Server):
        raise ConfigError(f"rollout: {rollout.target} is no sampler; use rollout=vllm, or null.")
    if not technique.vllm:
        raise ConfigError(
            f"rollout={rollout.target} with adapter={technique.mode}: vLLM serves whole models and "
            "plain low-rank adapters. Set rollout=null, or adapter=lora, rslora, lora_plus or full."
        )
    found.check(adapter=technique.shares_base)


def require_close(gap: float, most: float) -> None:
    """Stop where sampler and trainer disagree beyond rounding.

    Raises:
        TrainingError: the mean absolute difference of their log-probabilities is above ``most``.
    """
    if not gap <= most:
        raise TrainingError(
            "vLLM and the trainer give the sampled tokens log-probabilities that differ by "
            f"{gap:.3g} nats on average (rollout.max_gap={most:g}): the weights did not "
            "arrive, the model is another, or the server does not run with --logprobs-mode "
            "processed_logprobs."
        )
