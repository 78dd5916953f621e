"""Views as low-rank adapters on one frozen base (peft)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from alignlab.errors import ConfigError
from alignlab.models.load import Adapter
from alignlab.models.sharding import elements, sharing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class AdapterBodies:
    """Named adapters on one base model, at most one of them active.

    Three traps of peft are closed here: ``set_adapter`` turns ``requires_grad`` off for every other
    adapter (it is put back, see `activate`); "adapter off" is the base, never an SFT model (every
    view has an adapter of its own); the file format does not hold the adapter's name.
    """

    mode = "lora"

    def __init__(self, base: PreTrainedModel, adapter: Adapter, base_name: str) -> None:
        self._base = base
        self._adapter = adapter
        self._base_name = base_name
        self._peft: Any = None  # PeftModel around the base, once there is an adapter
        self._trainable: dict[str, bool] = {}
        self._active: str | None = None

    @staticmethod
    def _key(name: str) -> str:
        return f"{name}_view"  # peft refuses some names, such as parts of "lora_"

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Add adapter ``name``: a copy of the one in ``source``, or a fresh one (a zero update)."""
        from peft import get_peft_model

        config = self._read_config(source) if source else self._fresh_config()
        if self._peft is None:
            self._peft = get_peft_model(self._base, config, adapter_name=self._key(name))
        else:
            self._peft.add_adapter(self._key(name), config)
        self._trainable[name] = trainable
        self._active = None
        if source:
            self._read_weights(name, source)
        self.activate(name)

    def activate(self, name: str) -> PreTrainedModel:
        """Make ``name`` the adapter that the base computes with, and return the base."""
        if self._active != name:
            self._peft.base_model.set_adapter(self._key(name))
            for other, trainable in self._trainable.items():
                for parameter in self._named(other).values():
                    parameter.requires_grad_(trainable)
            self._active = name
        return self._base

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of ``name``; none for a frozen view."""
        return self._named(name) if self._trainable[name] else {}

    def count(self, name: str) -> int:
        """Parameters that the view computes with: the base and its own adapter."""
        return sum(map(elements, self.all_parameters(name)))

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that `count` counts."""
        base = [p for n, p in self._base.named_parameters() if ".lora_" not in n]
        return [*base, *self._named(name).values()]

    def modules(self) -> dict[str, nn.Module]:
        """The base with all its adapters."""
        return {"base": self._base}

    def sharing(self) -> Self:
        """The same parameters in modules of their own."""
        twin = copy.copy(self)
        twin._peft = sharing(self._peft)
        twin._base = twin._peft.base_model.model
        twin._trainable = dict(self._trainable)
        twin._active = None
        return twin

    def save(self, name: str, folder: Path) -> None:
        """Write an ordinary peft adapter folder."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        state = get_peft_model_state_dict(
            self._peft, adapter_name=self._key(name), save_embedding_layers=False
        )
        save_file(
            {k: v.detach().contiguous().cpu() for k, v in state.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        self._peft.peft_config[self._key(name)].save_pretrained(folder)
        # peft writes its sets in the order of their hashes; the file should be the same every time.
        written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        written["base_model_name_or_path"] = self._base_name
        written["inference_mode"] = True
        if isinstance(written["target_modules"], list):
            written["target_modules"].sort()
        text = json.dumps(written, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def drop(self, name: str) -> None:
        """Free adapter ``name``."""
        del self._trainable[name]
        self._active = None
        if self._trainable:
            self.activate(next(iter(self._trainable)))  # so that peft deletes no active adapter
            self._peft.delete_adapter(self._key(name))
        else:
            self._base = self._peft.unload()
            self._peft = None

    def _named(self, name: str) -> dict[str, nn.Parameter]:
        """Parameters of an adapter by module path, without the adapter's name."""
        found = {}
        for key, parameter in self._base.named_parameters():
            module, lora, rest = key.partition(".lora_")
            parts = rest.split(".")  # "A", key, "weight"
            if lora and parts[1] == self._key(name):
                found[".".join([f"{module}.lora_{parts[0]}", *parts[2:]])] = parameter
        return found

    def _fresh_config(self) -> Any:
        from peft import LoraConfig

        modules = self._adapter.target_modules
        names = [modules] if isinstance(modules, str) else list(modules)
        settings: dict[str, Any] = {"r": self._adapter.rank, "lora_alpha": self._adapter.alpha}
        return LoraConfig(
            **settings,
            lora_dropout=self._adapter.dropout,
            target_modules=modules if modules == "all-linear" else names,
            task_type="CAUSAL_LM",
        )

    def _read_config(self, source: Path) -> Any:
        from peft import LoraConfig

        if not (source / CONFIG).is_file():
            raise ConfigError(f"{source}: no adapter there ({CONFIG} is missing).")
        config = LoraConfig.from_pretrained(str(source))
        config.inference_mode = False  # whether it is trained is the view's to say
        config.lora_dropout = self._adapter.dropout
        config.base_model_name_or_path = self._base.name_or_path
        return config

    def _read_weights(self, name: str, source: Path) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        state = load_file(source / WEIGHTS)
        result: Any = set_peft_model_state_dict(self._peft, state, adapter_name=self._key(name))
        missing = [k for k in result.missing_keys if ".lora_" in k and f".{self._key(name)}." in k]
        if missing or result.unexpected_keys:
            odd = (missing or result.unexpected_keys)[0]
            raise ConfigError(f"{source}: this adapter does not fit {self._base_name} ({odd}).")
