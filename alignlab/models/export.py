"""A run's model outside of alignlab: an ordinary Hugging Face folder, or a PEFT adapter folder.

Every model folder has a ``view.json``: ``{"mode": "lora" | "full", "base": path as configured,
"base_sha256", "head": bool}``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PRIVATE = ("view.json",)  # ours, of no use to others
HEAD = "head.safetensors"


def export_model(
    source: Path, to: Path, cache: Path, *, merge: bool, dtype: str | None = None
) -> str:
    """Write the model folder ``source`` of a run to ``to``; return one sentence on what it is.

    ``dtype`` (``bfloat16`` …) stores the weights of a whole model in that format; None leaves them.

    Raises:
        ConfigError: ``to`` is not empty, there is no model, its base model has changed, or a dtype
            is asked of an adapter that is not merged.
    """
    view = read_view(source)
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to}: is not an empty folder; give a new name.")
    head = f" Its scalar head is in {HEAD}." if view["head"] else ""
    adapter = view["mode"] == "lora"
    if dtype is not None and adapter and not merge:
        raise ConfigError(
            "--dtype: an adapter keeps its own format; add --merge for a whole model."
        )
    if dtype is not None or (adapter and merge):
        model, tokenizer = load_merged(source, cache)
        if dtype is not None:
            import torch

            model = model.to(getattr(torch, dtype))
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
        if view["head"]:
            shutil.copy2(source / HEAD, to / HEAD)
        merged = f" (adapter merged into {view['base']})" if adapter else f" in {dtype}"
        return f"{to}: a Hugging Face model{merged}.{head}"
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(*PRIVATE), dirs_exist_ok=True)
    if view["mode"] == "full":
        return f"{to}: a Hugging Face model.{head}"
    base = _base(view, cache)
    _name_base(to / "adapter_config.json", base)
    return f"{to}: a PEFT adapter for the base model {base} ({view['base']}).{head}"


def load_merged(source: Path, cache: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run's model as a plain causal language model, a LoRA adapter merged into its base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    view = read_view(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if view["mode"] == "full":
        return AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval(), tokenizer
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(_base(view, cache), dtype="auto")
    merged: Any = PeftModel.from_pretrained(base, str(source)).merge_and_unload()
    return merged.eval(), tokenizer


def read_view(source: Path) -> dict[str, Any]:
    """Read a model folder's view.json; raise ConfigError when it is not one."""
    file = source / "view.json"
    if not file.is_file():
        raise ConfigError(f"{source} is not the model folder of a run: it has no view.json.")
    return json.loads(file.read_text(encoding="utf-8"))


def _base(view: dict[str, Any], cache: Path) -> Path:
    from alignlab.models.load import resolve
    from alignlab.models.weights import weights_sha256

    folder = resolve(view["base"], cache)
    if weights_sha256(folder) != view["base_sha256"]:
        raise ConfigError(
            f"the base model {view['base']} ({folder}) is not the one that this adapter was "
            "trained on; an adapter on another base is another model."
        )
    return folder


def _name_base(file: Path, base: Path) -> None:
    # peft finds the base model by this field; what stands in the run may be one of our own names.
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base)
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
