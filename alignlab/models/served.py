"""Several runs' models by name: adapters of one technique share one base in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.models.bodies import PEFT_CONFIG
from alignlab.models.export import base_of, load_applied, load_merged, read_view
from alignlab.models.load import technique_of
from alignlab.models.quantized import FILE as QUANTIZATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Served:
    """One model in memory and the names it answers to: adapters on one base, or a single name."""

    model: Any
    names: tuple[str, ...]
    tokenizers: Mapping[str, PreTrainedTokenizerBase]

    def use(self, name: str) -> tuple[Any, PreTrainedTokenizerBase]:
        """Model and tokenizer that ``name`` computes with, from now on."""
        if len(self.names) > 1:
            self.model.set_adapter(_key(name, self.names))
        return self.model, self.tokenizers[name]


def serve(folders: Mapping[str, Path], cache: Path) -> dict[str, Served]:
    """Load the model folders of runs, each base once; gives what every name is served by.

    Adapters share a base where they are of one technique of peft and were trained on one base
    model; any other run is a model of its own.

    Raises:
        ConfigError: a folder is no model of a run, or its base model has changed.
    """
    alike: dict[str, list[str]] = {}
    for name, folder in folders.items():
        alike.setdefault(_likeness(name, folder), []).append(name)
    found: dict[str, Served] = {}
    for names in alike.values():
        first = names[0]
        mergeable = not technique_of(read_view(folders[first])["mode"], folders[first]).unmergeable
        load = load_merged if len(names) == 1 and mergeable else load_applied
        model, tokenizer = load(folders[first], cache)
        tokenizers = {first: tokenizer}
        for name in names[1:]:
            model.load_adapter(str(folders[name]), adapter_name=_key(name, names))
            tokenizers[name] = _tokenizer(folders[name])
        if len(names) > 1:
            model.eval()
        served = Served(model, tuple(names), tokenizers)
        found |= dict.fromkeys(names, served)
    return {name: found[name] for name in folders}


def describe(served: Mapping[str, Served]) -> str:
    """One sentence on who shares what."""
    models = {id(one): one for one in served.values()}.values()
    shared = [f"{', '.join(one.names)} on one base" for one in models if len(one.names) > 1]
    alone = [one.names[0] for one in models if len(one.names) == 1]
    return "; ".join([*shared, *(f"{name} by itself" for name in alone)])


def server_command(folders: Mapping[str, Path], cache: Path) -> str:
    """How vLLM serves exported adapters by name; empty where it cannot.

    It takes LoRA in all forms that are ``W + s·B A``, on one base of any kind it loads.
    """
    views = [read_view(folder) for folder in folders.values()]
    plain = all(
        (folder / PEFT_CONFIG).is_file() and technique_of(view["mode"], folder).vllm
        for folder, view in zip(folders.values(), views, strict=True)
    )
    if not plain or len({view["base_sha256"] for view in views}) > 1:
        return ""
    ranks = [_config(folder)["r"] for folder in folders.values()]
    modules = " ".join(f"{name}={folder}" for name, folder in folders.items())
    base = base_of(views[0], cache)
    return f"vllm serve {base} --enable-lora --max-lora-rank {max(ranks)} --lora-modules {modules}"


def _likeness(name: str, folder: Path) -> str:
    """What folders have in common whose adapters can share a base; else the name itself."""
    view = read_view(folder)
    if view["mode"] == "full" or not (folder / PEFT_CONFIG).is_file():
        return f"alone {name}"
    stated = folder / QUANTIZATION
    quantised = stated.read_text(encoding="utf-8") if stated.is_file() else ""
    return f"{_config(folder)['peft_type']} {view['base_sha256']} {quantised}"


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    return found


def _key(name: str, names: Sequence[str]) -> str:
    """What peft calls an adapter: the first of a base is its ``default``."""
    return "default" if name == names[0] else f"served_{names.index(name)}"


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return found
