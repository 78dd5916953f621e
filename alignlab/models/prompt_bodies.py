"""Views as soft prompts in front of one frozen base: peft's encoders, in passes of our own.

peft's wrapper cannot run the flat batch, so only its encoders, configurations and file format are
used; what they compute enters the pass in `alignlab.models.virtual_tokens`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from alignlab.errors import ConfigError
from alignlab.models.adapters import WEIGHTS
from alignlab.models.bodies import PEFT_CONFIG as CONFIG
from alignlab.models.layout import GROUPED
from alignlab.models.sharding import elements, sharing
from alignlab.models.soft_prompts import PrefixTuning, SoftPromptTechnique
from alignlab.models.virtual_tokens import Prefix, SoftPrompt, VirtualTokens, set_soft_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignlab.models.bodies import Base

ENCODER = "prompt_encoder.safetensors"  # a network that computes the prompt; peft keeps none
# Architectures of the padded layout whose layers take keys and values that are there beforehand.
PREFIX_PADDED = frozenset({"bloom", "gpt_neo", "gptj", "codegen", "stablelm", "nemotron"})


class PromptBodies:
    """Named soft prompts, at most one of them active; a view may have none.

    A frozen view keeps what its prompt is, a trained one also the network that computes it.
    """

    shares_base = True

    def __init__(self, base: Base, technique: SoftPromptTechnique) -> None:
        self._given, self._technique = base, technique
        self._base = base.frozen()
        if isinstance(technique, PrefixTuning):
            _require_known(self._base)
        self._prompts: dict[str, SoftPrompt | None] = {}
        self._configs: dict[str, Any] = {}
        self._encoders = nn.ModuleDict()
        self._trainable: dict[str, bool] = {}

    @property
    def mode(self) -> str:
        """The technique's name."""
        return self._technique.mode

    @property
    def family(self) -> frozenset[str]:
        """No other technique's views may stand beside."""
        return frozenset()

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Add what `save` wrote to ``source``; else a fresh prompt to train, or the bare base."""
        self._trainable[name] = trainable
        if source is None and not trainable:
            self._prompts[name] = None
            return
        if source is None:
            config, encoder = self._fresh()
        else:
            config, encoder = self._read(source, trainable)
        encoder.float().to(self._given.device).requires_grad_(trainable)
        self._configs[name] = config
        self._encoders[_key(name)] = encoder
        self._prompts[name] = _soft_prompt(config, encoder)

    def activate(self, name: str) -> PreTrainedModel:
        """Put the prompt of ``name`` before what the base reads, and return the base."""
        set_soft_prompt(self._base, self._prompts[name])
        return self._base

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of ``name``; none for a frozen view."""
        if not self._trainable[name]:
            return {}
        return {f"prompt.{key}": p for key, p in self._named(name).items()}

    def count(self, name: str) -> int:
        """Parameters that the view computes with: the base and its own prompt."""
        return sum(map(elements, self.all_parameters(name)))

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that `count` counts."""
        return [*self._base.parameters(), *self._named(name).values()]

    def modules(self) -> dict[str, nn.Module]:
        """The base, and what makes the prompts."""
        return {"base": self._base, "prompts": self._encoders}

    def sharing(self) -> Self:
        """The same parameters in modules of their own."""
        twin = copy.copy(self)
        set_soft_prompt(self._base, None)  # the next `activate` sets it again
        twin._base = sharing(self._base)
        twin._encoders = sharing(self._encoders)
        twin._trainable = dict(self._trainable)
        twin._prompts = {
            name: prompt and _soft_prompt(self._configs[name], twin._encoders[_key(name)])
            for name, prompt in self._prompts.items()
        }
        return twin

    def save(self, name: str, folder: Path) -> None:
        """Write an ordinary peft folder, and the network of a prompt that is computed."""
        from safetensors.torch import save_file

        prompt = self._prompts[name]
        if prompt is None:
            raise ValueError(f"The view {name!r} is the base; there is nothing of its own to save.")
        with torch.no_grad():
            states = prompt.states(training=False).contiguous().cpu()
        save_file({"prompt_embeddings": states}, folder / WEIGHTS, metadata={"format": "pt"})
        network = {key: p.detach().contiguous().cpu() for key, p in self._named(name).items()}
        if len(network) > 1:
            save_file(network, folder / ENCODER)
        self._configs[name].save_pretrained(folder)
        written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        written["base_model_name_or_path"] = self._given.name
        written["inference_mode"] = True
        if written.get("tokenizer_name_or_path"):  # of a start from a text; not read again
            written["tokenizer_name_or_path"] = self._given.name
        text = json.dumps(written, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def drop(self, name: str) -> None:
        """Free a prompt."""
        set_soft_prompt(self._base, None)
        del self._prompts[name], self._trainable[name]
        if name in self._configs:
            del self._configs[name], self._encoders[_key(name)]

    def _named(self, name: str) -> dict[str, nn.Parameter]:
        return dict(self._encoders[_key(name)].named_parameters()) if self._prompts[name] else {}

    def _fresh(self) -> tuple[Any, nn.Module]:
        import peft

        kind = {
            "prompt": peft.PromptTuningConfig,
            "ptuning": peft.PromptEncoderConfig,
            "prefix": peft.PrefixTuningConfig,
        }[self.mode]
        options: dict[str, Any] = {
            **self._sizes(),
            **self._technique.options(self._given),
            "num_virtual_tokens": self._technique.tokens,
        }
        config: Any = kind(task_type="CAUSAL_LM", num_transformer_submodules=1, **options)
        words = self._base.get_input_embeddings()
        encoder: nn.Module = {
            "prompt": lambda: peft.PromptEmbedding(config, words),
            "ptuning": lambda: peft.PromptEncoder(config),
            "prefix": lambda: peft.PrefixEncoder(config),
        }[self.mode]()
        return config, encoder

    def _sizes(self) -> dict[str, int]:
        """Sizes of the model as peft's configurations state them."""
        config: Any = self._base.config.get_text_config(decoder=True)
        heads = int(config.num_attention_heads)
        words: Any = self._base.get_input_embeddings()
        width = int(words.embedding_dim)
        if self.mode == "prefix":
            head = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
            heads = int(getattr(config, "num_key_value_heads", None) or heads)
            width = heads * head
        return {
            "num_layers": int(config.num_hidden_layers),
            "num_attention_heads": heads,
            "token_dim": width,
        }

    def _read(self, source: Path, trainable: bool) -> tuple[Any, nn.Module]:
        """The prompt in ``source``: with its network if it is trained on and was saved."""
        from peft import PeftConfig, PrefixEncoder, PromptEmbedding, PromptEncoder
        from peft import PromptTuningConfig as Plain
        from safetensors.torch import load_file

        if not (source / CONFIG).is_file():
            raise ConfigError(f"{source}: no soft prompt there ({CONFIG} is missing).")
        config: Any = PeftConfig.from_pretrained(str(source))
        states = load_file(source / WEIGHTS)["prompt_embeddings"]
        sizes = self._sizes()
        wide = sizes["token_dim"] * (2 * sizes["num_layers"] if self.mode == "prefix" else 1)
        if states.shape[1] != wide:
            raise ConfigError(
                f"{source}: a prompt of width {states.shape[1]} does not fit {self._given.name} "
                f"({wide})."
            )
        if trainable and (source / ENCODER).is_file():
            config.inference_mode = False
            encoder = PromptEncoder(config) if self.mode == "ptuning" else PrefixEncoder(config)
            encoder.load_state_dict(load_file(source / ENCODER))
            return config, encoder
        count, wide = states.shape
        plain = PromptEmbedding(
            Plain(num_virtual_tokens=count, token_dim=wide, num_transformer_submodules=1), None
        )
        with torch.no_grad():
            plain.embedding.weight.copy_(states)
        return config, plain


def _key(name: str) -> str:
    return f"{name}_view"  # some names are methods of a ModuleDict, such as "values"


def _soft_prompt(config: Any, encoder: nn.Module) -> SoftPrompt:
    count = int(config.num_virtual_tokens)
    if str(config.peft_type.value) == "PREFIX_TUNING":
        return Prefix(encoder, count, int(config.num_layers), int(config.num_attention_heads))
    return VirtualTokens(encoder, count)


def _require_known(model: PreTrainedModel) -> None:
    kind = str(model.config.get_text_config(decoder=True).model_type)
    if kind not in GROUPED | PREFIX_PADDED:
        raise ConfigError(
            f"adapter=prefix is not known to work with {kind}: its layers would have to take keys "
            "and values from outside. adapter=prompt and adapter=ptuning need no more than "
            f"embeddings. Prefixes work with {', '.join(sorted(GROUPED | PREFIX_PADDED))}."
        )
