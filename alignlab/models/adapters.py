"""Views as adapters on one frozen base (peft)."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from alignlab.errors import ConfigError
from alignlab.models.auto import encodes
from alignlab.models.bodies import PEFT_CONFIG as CONFIG
from alignlab.models.bodies import made_as
from alignlab.models.low_rank import LowRank
from alignlab.models.sharding import elements, sharing
from alignlab.models.vision import outside_of_adapters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"


class AdapterBodies:
    """Named adapters on one base model, at most one of them active.

    Three traps of peft are closed here: ``set_adapter`` turns ``requires_grad`` off for every other
    adapter (it is put back, see `activate`); "adapter off" is the base, never an SFT model (every
    view has an adapter of its own); the file format does not hold the adapter's name.
    """

    shares_base = True

    def __init__(self, base: PreTrainedModel, technique: LowRank, base_name: str) -> None:
        self._base = base
        self._technique = technique
        self._base_name = base_name
        self._peft: Any = None  # PeftModel around the base, once there is an adapter
        self._trainable: dict[str, bool] = {}
        self._active: str | None = None

    @property
    def mode(self) -> str:
        """The technique's name."""
        return self._technique.mode

    @property
    def family(self) -> frozenset[str]:
        """Techniques whose frozen views may stand beside this one's."""
        return self._technique.family if self.mode in self._technique.family else frozenset()

    @staticmethod
    def _key(name: str) -> str:
        return f"{name}_view"  # peft refuses some names, such as parts of "lora_"

    def add(self, name: str, source: Path | None, *, trainable: bool) -> None:
        """Add adapter ``name``: a copy of the one in ``source``, or a fresh one (a zero update)."""
        config = self._read_config(source, trainable) if source else self._fresh_config()
        self._inject(self._key(name), config)
        self._trainable[name] = trainable
        self._active = None
        if source:
            self._read_weights(name, source)
        self.activate(name)

    def _fresh_config(self) -> Any:
        config = self._technique.peft_config()
        if encodes(self._base.config):  # peft's class for causal models asks them to generate
            config.task_type = "FEATURE_EXTRACTION"
        if (outside := outside_of_adapters(self._base)) is not None:
            config.exclude_modules = outside
        return config

    def _inject(self, key: str, config: Any) -> None:
        """Put a fresh adapter on the base.

        Raises:
            ConfigError: peft cannot adapt a module of this architecture.
        """
        try:
            self._injected(key, config)
        except ValueError as error:
            raise ConfigError(
                f"adapter={self.mode} does not fit {self._base_name}: {error} Name other modules "
                "in adapter.target_modules."
            ) from error

    def _injected(self, key: str, config: Any) -> None:
        from peft import get_peft_model

        if self._peft is None:
            with warnings.catch_warnings():  # peft asks transformers by a name that it has changed
                warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
                self._peft = get_peft_model(self._base, config, adapter_name=key)
        else:
            self._peft.add_adapter(key, config)

    def activate(self, name: str) -> PreTrainedModel:
        """Make ``name`` the adapter that the base computes with, and return the base."""
        if self._active != name:
            self._peft.base_model.set_adapter(self._keys(name))
            for other in self._trainable:
                for parameter in self._named(other).values():
                    parameter.requires_grad_(self._trainable[other])
            self._active = name
        return self._base

    def _keys(self, name: str) -> list[str]:
        """What peft calls the adapters that are active with ``name``."""
        return [self._key(name)]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of ``name``; none for a frozen view."""
        return self._named(name) if self._trainable[name] else {}

    def count(self, name: str) -> int:
        """Parameters that the view computes with: the base and its own adapter."""
        return sum(map(elements, self.all_parameters(name)))

    def all_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that `count` counts."""
        keys = {self._key(other) for other in self._trainable}
        named = self._base.named_parameters()
        base = [p for n, p in named if keys.isdisjoint(n.split("."))]
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
        from safetensors.torch import save_file

        state = {k: v.detach().contiguous().cpu() for k, v in self._state(name).items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        self._config(name).save_pretrained(folder)
        # peft writes its sets in the order of their hashes; the file should be the same every time.
        written = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        written["base_model_name_or_path"] = self._base_name
        written["inference_mode"] = True
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(written.get(key), list):
                written[key].sort()
        text = json.dumps(written, indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def _state(self, name: str) -> dict[str, Any]:
        """Tensors of the adapter's file."""
        from peft import get_peft_model_state_dict

        found: dict[str, Any] = get_peft_model_state_dict(
            self._peft, adapter_name=self._key(name), save_embedding_layers=False
        )
        return found

    def _config(self, name: str) -> Any:
        """Configuration that the file says."""
        return self._peft.peft_config[self._key(name)]

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
        key = self._key(name)
        own = self._own(self._base, key)
        return {".".join(part for part in p.split(".") if part != key): value for p, value in own}

    @staticmethod
    def _own(model: nn.Module, key: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters of the adapter ``key`` by their paths; AdaLoRA's constants are none."""
        for path, parameter in model.named_parameters():
            parts = path.split(".")
            if key in parts and "ranknum" not in parts:
                yield path, parameter

    def _read_config(self, source: Path, trainable: bool) -> Any:
        from peft import PeftConfig

        if not (source / CONFIG).is_file():
            raise ConfigError(f"{source}: no adapter there ({CONFIG} is missing).")
        mode = made_as(source)["mode"]
        if mode != self.mode and trainable:
            raise ConfigError(
                f"{source} was trained with adapter={mode} and cannot be trained further with "
                f"adapter={self.mode}. Set the same adapter in both stages."
            )
        config: Any = PeftConfig.from_pretrained(str(source))
        config.inference_mode = False  # whether it is trained is the view's to say
        config.base_model_name_or_path = self._base.name_or_path
        return self._technique.continued(config)

    def _read_weights(self, name: str, source: Path) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        key = self._key(name)
        state = load_file(source / WEIGHTS)
        result: Any = set_peft_model_state_dict(self._peft, state, adapter_name=key)
        wanted = {path for path, _ in self._own(self._peft, key)}
        missing = [path for path in result.missing_keys if path in wanted]
        if missing or result.unexpected_keys:
            odd = (missing or result.unexpected_keys)[0]
            raise ConfigError(f"{source}: this adapter does not fit {self._base_name} ({odd}).")
