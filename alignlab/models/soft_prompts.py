"""Soft prompts: a few learned states before every prompt, in front of a base that stays as it is.

Prompt tuning and P-tuning learn embeddings of virtual tokens, prefix tuning the keys and values of
every layer. Real tokens take the positions behind them. Imports nothing heavy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.models.techniques import Sizes, Technique

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes


@dataclass(frozen=True, kw_only=True)
class SoftPromptTechnique(Technique):
    """Fields and bodies that all soft prompts share.

    A view that starts afresh and is not trained has nothing before its prompts: it is the base.
    """

    unmergeable: ClassVar[str] = "virtual tokens are inputs, and no weight of the model can be them"

    tokens: Annotated[int, Range(min=1)]  # virtual tokens before every prompt
    # factor on the optimizer's learning rate, that of a scalar head left out
    rate: Annotated[float, Range(min=0, min_open=True)] = 1.0

    @property
    def virtual_tokens(self) -> int:
        """As many as are configured."""
        return self.tokens

    @property
    def mode(self) -> str:
        """The technique's name."""
        return str(getattr(self, "method"))  # noqa: B009 (every soft prompt has one)

    @property
    def rates(self) -> Mapping[str, float]:
        """``rate`` on all that a view trains but a scalar head."""
        return {"prompt.*": self.rate}

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """What is trained comes on top of the base."""
        own = self.parameters(dimensions)
        return Sizes(trained=own, added=own, still=True)

    @abstractmethod
    def parameters(self, dimensions: Dimensions) -> int:
        """Trained parameters of a view."""

    @abstractmethod
    def options(self, base: Base) -> dict[str, Any]:
        """Fields of peft's configuration, beside the sizes of the model."""

    def bodies(self, base: Base) -> Bodies:
        """Soft prompts in front of one base."""
        from alignlab.models.prompt_bodies import PromptBodies

        return PromptBodies(base, self)


@dataclass(frozen=True, kw_only=True)
class PromptTuning(SoftPromptTechnique):
    """Embeddings of virtual tokens, and nothing else (Lester et al. 2021).

    https://arxiv.org/abs/2104.08691: ``[P; X]`` instead of ``X``, P of shape (v, H) trained. How P
    starts decides much for small models: random values are the worst choice, embeddings of the
    vocabulary or of a text that says the task are better.
    """

    method: Literal["prompt"] = "prompt"
    start: Literal["random", "vocabulary", "text"]
    text: str | None = None  # repeated, or cut, to as many tokens as there are virtual ones

    def __post_init__(self) -> None:
        """A text is needed for a start from a text, and for nothing else."""
        if (self.start == "text") != (self.text is not None):
            raise ConfigError(
                "adapter.start=text needs adapter.text, the text whose embeddings are the start."
                if self.text is None
                else f"adapter.text is not used with adapter.start={self.start}; set start=text."
            )

    def parameters(self, dimensions: Dimensions) -> int:
        """v·H."""
        return self.tokens * dimensions.hidden

    def options(self, base: Base) -> dict[str, Any]:
        """What fills the embedding; the text is tokenised by the base model's tokenizer."""
        start = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "TEXT"}[self.start]
        options: dict[str, Any] = {"prompt_tuning_init": start}
        if self.text is not None:
            options |= {
                "prompt_tuning_init_text": self.text,
                "tokenizer_name_or_path": str(base.folder),
            }
        return options


@dataclass(frozen=True, kw_only=True)
class PTuning(SoftPromptTechnique):
    """Embeddings of virtual tokens that a small network computes (Liu et al. 2021).

    https://arxiv.org/abs/2103.10385: ``P = MLP(LSTM(h))`` over trained states h, which
    ties the virtual tokens together; ``encoder=mlp`` leaves the LSTM out (the default of peft).
    A run keeps the network beside the embeddings, so that a later stage trains it on.
    """

    method: Literal["ptuning"] = "ptuning"
    encoder: Literal["mlp", "lstm"]
    hidden: Annotated[int, Range(min=1)]  # width of the network
    layers: Annotated[int, Range(min=1)]  # of the LSTM
    dropout: Annotated[float, Range(min=0, max=1, max_open=True)]  # between the LSTM's layers

    def __post_init__(self) -> None:
        """Refuse what peft's network would not heed."""
        if self.encoder == "mlp" and (self.layers, self.dropout) != (2, 0.0):
            raise ConfigError(
                "adapter.encoder=mlp has two hidden layers and no dropout: leave adapter.layers=2 "
                "and adapter.dropout=0.0, or set encoder=lstm."
            )

    def parameters(self, dimensions: Dimensions) -> int:
        """v·H states and the network, biases included."""
        states, wide, m = self.tokens * dimensions.hidden, dimensions.hidden, self.hidden
        if self.encoder == "mlp":
            return states + (wide + 1) * m + (m + 1) * m + (m + 1) * wide
        inputs = [wide] + [2 * m] * (self.layers - 1)
        lstm = sum(
            2 * 4 * m * (i + m + 2) for i in inputs
        )  # two directions, four gates, two biases
        return states + lstm + (2 * m + 1) * 2 * m + (2 * m + 1) * wide

    def options(self, base: Base) -> dict[str, Any]:
        """The network."""
        return {
            "encoder_reparameterization_type": self.encoder.upper(),
            "encoder_hidden_size": self.hidden,
            "encoder_num_layers": self.layers,
            "encoder_dropout": self.dropout,
        }


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(SoftPromptTechnique):
    """Keys and values before those of the prompt, in every layer (Li and Liang 2021).

    https://arxiv.org/abs/2101.00190: a matrix P of shape (v, 2·layers·K) is what
    attention sees before all tokens. With a ``hidden`` width P is ``MLP(P')`` of a smaller P' while
    it is trained, as there; without one it is trained itself (P-tuning v2, Liu et al. 2022).
    """

    method: Literal["prefix"] = "prefix"
    hidden: Annotated[int, Range(min=1)] | None  # width of the network that computes it, if any

    def parameters(self, dimensions: Dimensions) -> int:
        """v·2·layers·K, or the network that computes them."""
        keys, every = dimensions.keys, 2 * dimensions.layers * dimensions.keys
        if self.hidden is None:
            return self.tokens * every
        return self.tokens * keys + (keys + 1) * self.hidden + (self.hidden + 1) * every

    def options(self, base: Base) -> dict[str, Any]:
        """The network, if any."""
        if self.hidden is None:
            return {"prefix_projection": False}
        return {"prefix_projection": True, "encoder_hidden_size": self.hidden}
