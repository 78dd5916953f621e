"""A run's model outside of alignlab: an ordinary Hugging Face folder, or a PEFT adapter folder.

Every model folder has a ``view.json``: ``{"mode": name of the technique ("full": a whole model),
"base": path as configured, "base_sha256", "head": bool}``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError
from alignlab.models.auto import read_model
from alignlab.models.bodies import PEFT_CONFIG
from alignlab.models.load import technique_of
from alignlab.models.quantized import FILE as QUANTIZATION

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
    adapter = view["mode"] != "full"
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
        (processor_of(source) or tokenizer).save_pretrained(to)
        if view["head"]:
            shutil.copy2(source / HEAD, to / HEAD)
        merged = f" (adapter merged into {view['base']})" if adapter else f" in {dtype}"
        return f"{to}: a Hugging Face model{merged}.{head}"
    shutil.copytree(source, to, ignore=shutil.ignore_patterns(*PRIVATE), dirs_exist_ok=True)
    if view["mode"] == "full":
        return f"{to}: a Hugging Face model.{head}"
    base = base_of(view, cache)
    what = f"for the base model {base} ({view['base']}).{head}"
    if not (to / PEFT_CONFIG).is_file():
        return f"{to}: what adapter={view['mode']} trained, {what}"
    _name_base(to / PEFT_CONFIG, base)
    if (to / QUANTIZATION).is_file():
        what += (
            f" It was trained on that base in four bits ({QUANTIZATION}): load it so, or use "
            "--merge; on the base as it is, the adapter computes something else."
        )
    return f"{to}: a PEFT adapter {what}"


def load_merged(source: Path, cache: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a run's model as a plain causal language model, what was trained merged into its base.

    Raises:
        ConfigError: its technique computes what no plain model does.
    """
    view = read_view(source)
    technique = technique_of(view["mode"], source)
    if technique.unmergeable:
        raise ConfigError(
            f"{source.parent.name}: adapter={view['mode']} cannot be merged into its base model: "
            f"{technique.unmergeable}. Export it without --merge (and without --dtype)."
        )
    model, tokenizer = load_applied(source, cache)
    return technique.merged(model).eval() if view["mode"] != "full" else model, tokenizer


def load_applied(source: Path, cache: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a run's model to be used as it is, unmerged: a plain model, or one with an adapter."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    view = read_view(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    if view["mode"] == "full":
        return read_model(source, dtype="auto"), tokenizer
    base = read_model(base_of(view, cache), dtype="auto")
    return technique_of(view["mode"], source).applied(base, source).eval(), tokenizer


def processor_of(source: Path) -> Any | None:
    """What makes tokens and pixels of images for a run's model; None for a model of texts."""
    if not (source / "processor_config.json").is_file():
        return None
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(source)


def read_view(source: Path) -> dict[str, Any]:
    """Read a model folder's view.json; raise ConfigError when it is not one."""
    file = source / "view.json"
    if not file.is_file():
        raise ConfigError(f"{source} is not the model folder of a run: it has no view.json.")
    return json.loads(file.read_text(encoding="utf-8"))


def base_of(view: dict[str, Any], cache: Path) -> Path:
    """Folder of the base model that a ``view.json`` names; ConfigError if it is another by now."""
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
