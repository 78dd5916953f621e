"""A reward run that stands apart: it reads texts, not the tokens of a policy.

It has a model and a tokenizer of its own (encoders can be nothing else, and a decoder of another
family than the policy's is one too), or is a reward function that takes a reward run's place. It
says so in ``model/reading.json``; whoever has it behind ``reward`` opens it beside the policy and
asks for scores of texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from alignlab import typed
from alignlab.errors import ConfigError
from alignlab.files import write_atomically
from alignlab.models.load import BackboneConfig
from alignlab.run import Run, Store
from alignlab.spec import Spec, build

if TYPE_CHECKING:
    import torch

    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.models.backbone import Backbone
    from alignlab.rewards.reward import Reward

FILE = "reading.json"
VIEW = "reward"


class Encodes(Protocol):
    """Makes token groups of prompt groups."""

    def groups(
        self, groups: Sequence[PromptGroup], rows: Sequence[int] | None = None
    ) -> list[TokenGroup]:
        """Tokens of every group, numbered by ``rows``."""
        ...

    def fingerprint(self) -> str:
        """Hash of everything that decides the ids."""
        ...


def stands_apart(model: Path) -> bool:
    """Whether the model folder of a reward run reads texts with a tokenizer of its own."""
    return (model / FILE).is_file()


def save_reading(model: Path, backbone: BackboneConfig) -> None:
    """Write into a reward run's model folder that it stands apart, and on which backbone."""
    write_atomically(model / FILE, {"backbone": typed.to_mapping(backbone)})


def save_function(model: Path, reward: Spec, mean: float, std: float) -> None:
    """Write the folder of a reward run that is a function, whose scores get this unit."""
    model.mkdir(parents=True, exist_ok=True)
    found = {"reward": typed.to_mapping(reward), "mean": mean, "std": std}
    write_atomically(model / FILE, found)


def carry_reading(sources: Sequence[Path], model: Path) -> None:
    """Let a merged reward model read as those do that it is made of.

    Raises:
        ConfigError: some of them stand apart, and some read a policy's tokens.
    """
    apart = [source for source in sources if stands_apart(source)]
    if not apart:
        return
    if len(apart) < len(sources):
        raise ConfigError(
            "some of the reward models read texts with a tokenizer of their own, and some a "
            "policy's tokens: train all of them with inputs.init, or none."
        )
    write_atomically(model / FILE, json.loads((apart[0] / FILE).read_text(encoding="utf-8")))


def encoding_of(backbone: Backbone) -> Encodes:
    """How a model that stands apart reads texts: its tokenizer, up to the rows that it can take.

    Of a decoder's positions a prompt gets half, and a completion the other half.
    """
    from alignlab.data.template import Tokenization
    from alignlab.data.text_pairs import TextPairs
    from alignlab.models.auto import encodes
    from alignlab.models.encoders import positions_of

    positions = positions_of(backbone.model_config.to_dict())
    if encodes(backbone.model_config):
        return TextPairs(backbone.tokenizer, positions)
    half = max(positions // 2, 2)
    return Tokenization(backbone.tokenizer, half, max(positions - half, 1))


@dataclass(frozen=True)
class Apart:
    """The opened model of a reward run that stands apart."""

    backbone: Backbone
    encoding: Encodes

    @classmethod
    def open(cls, run: Run, device: torch.device | str) -> Apart:
        """Load the model of a finished reward run beside whatever else is in memory.

        Raises:
            ConfigError: it is a function, which has no model.
        """
        from alignlab.models.backbone import Backbone

        said = _said(run).get("backbone")
        if said is None:
            raise ConfigError(f"{run.name} is a reward function: it has no model to be read.")
        config = typed.build(BackboneConfig, said, f"{run.name}: backbone")
        whole = run.model_dir if (run.model_dir / "config.json").is_file() else None
        backbone = Backbone.load(config, Store(run.path.parent).cache, device, base=whole)
        backbone.add(VIEW, source=run.model_dir, trainable=False, head=True)
        return cls(backbone, encoding_of(backbone))

    def scores(self, groups: Sequence[PromptGroup], token_budget: int) -> list[list[float]]:
        """Score every completion of ``groups``, without gradients."""
        from alignlab.rewards.learned import score_groups

        tokens = self.encoding.groups(groups)
        with self.backbone.view(VIEW) as view:
            found = score_groups(view, tokens, token_budget, self.backbone.device).tolist()
        scores = iter(found)
        return [[next(scores) for _ in group.completions] for group in groups]


@dataclass(frozen=True)
class Function:
    """A reward of texts in the place of a reward run; its scores minus ``mean``, over ``std``."""

    reward: Reward
    mean: float = 0.0
    std: float = 1.0

    def scores(self, groups: Sequence[PromptGroup], token_budget: int = 0) -> list[list[float]]:
        """Score every completion of ``groups``; the budget is a model's."""
        from alignlab.data.text_pairs import written
        from alignlab.rewards.reward import known_of, prompt_text
        from alignlab.rewards.thinking import graded

        asked = [(group, written(text)) for group in groups for text in group.completions]
        prompts = [prompt_text(group) for group, _ in asked]
        texts = [text for _, text in asked]
        raw = graded(self.reward, prompts, texts, [known_of(group) for group, _ in asked])
        scores = iter(((raw.astype(float) - self.mean) / self.std).tolist())
        return [[next(scores) for _ in group.completions] for group in groups]


def open_apart(run: Run, device: torch.device | str) -> Apart | Function:
    """Whatever a finished reward run that stands apart is."""
    said = _said(run)
    if "reward" not in said:
        return Apart.open(run, device)
    spec = Spec.from_node(said["reward"], f"{run.name}: reward")
    return Function(build(spec), said["mean"], said["std"])


def _said(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.model_dir / FILE).read_text(encoding="utf-8"))
    return found
