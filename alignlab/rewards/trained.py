"""A finished reward run as a reward for texts, so that a model can be an annotator."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from alignlab import typed
from alignlab.errors import ConfigError, did_you_mean
from alignlab.models.load import BackboneConfig
from alignlab.rewards.apart import Apart, Function, open_apart, stands_apart
from alignlab.rewards.reward import Meta, Texts, fingerprint
from alignlab.run import Run, Store
from alignlab.typed import Range

if TYPE_CHECKING:
    from alignlab.data.template import Tokenization
    from alignlab.models.backbone import Backbone


@dataclass(frozen=True, kw_only=True)
class TrainedReward:
    """The scalar that a reward run gives to a completion after its prompt.

    Texts are tokenised again, so the ids can differ from those that a policy sampled. Prompts are
    plain text, as for every reward of text; the contents of messages stand one per line. A run
    that stands apart (an encoder) cuts texts to the rows that it can take, whatever the limits.
    """

    run: str  # full name of the run, reward-KEY
    store: str | None  # folder of finished runs; None = $ALIGNLAB_RUNS, else ./runs
    max_prompt: Annotated[int, Range(min=2)] | None  # tokens; None = no limit
    max_completion: Annotated[int, Range(min=1)] | None
    token_budget: Annotated[int, Range(min=1)]  # tokens of a forward pass; changes no score

    @property
    def name(self) -> str:
        """Short name for tables."""
        return self.run

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion, float32 (R,)."""
        from alignlab.data.group import PromptGroup
        from alignlab.rewards.learned import score_groups

        groups = [PromptGroup(p, (c,)) for p, c in zip(prompts, completions, strict=True)]
        if self._apart is not None:
            found = self._apart.scores(groups, self.token_budget)
            return np.array([score for part in found for score in part], dtype=np.float32)
        tokenization, backbone = self._loaded
        with backbone.view("reward") as view:
            tokens = tokenization.groups(groups)
            scores = score_groups(view, tokens, self.token_budget, backbone.device)
        return scores.cpu().numpy()

    def fingerprint(self) -> str:
        """Hash of the run's key, which names all that it was trained on, and of the limits."""
        return fingerprint(self, 1, self._finished.name)

    @cached_property
    def _finished(self) -> Run:
        root = Path(self.store or os.environ.get("ALIGNLAB_RUNS") or "runs").expanduser()
        found = {run.name: run for run in Store(root).runs() if run.kind == "reward"}
        if self.run not in found:
            hint = did_you_mean(self.run, found)
            raise ConfigError(f"No reward run '{self.run}' in {root.resolve()}.{hint}")
        if not found[self.run].done:
            raise ConfigError(f"{self.run} is not finished; run its study again first.")
        return found[self.run]

    @cached_property
    def _apart(self) -> Apart | Function | None:
        """What scores texts itself, where the run stands apart."""
        import torch

        if not stands_apart(self._finished.model_dir):
            return None
        return open_apart(self._finished, "cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _loaded(self) -> tuple[Tokenization, Backbone]:
        import torch

        from alignlab.data.template import Tokenization
        from alignlab.models.backbone import Backbone

        run = self._finished
        device = "cuda" if torch.cuda.is_available() else "cpu"
        stated = json.loads((run.path / "config.json").read_text(encoding="utf-8"))["backbone"]
        config = typed.build(BackboneConfig, stated, f"{run.name}: backbone")
        backbone = Backbone.load(config, Store(run.path.parent).cache, device)
        backbone.add("reward", source=run.model_dir, trainable=False, head=True)
        limits = self.max_prompt, self.max_completion
        return Tokenization(backbone.tokenizer, *limits), backbone
