"""What ``alignlab data`` looks at: the data, the tokenizer and the limits of a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.compose import compose
from alignlab.data.gate.limits import Limits
from alignlab.data.sources.source import SPLITS, Source
from alignlab.errors import ConfigError, did_you_mean
from alignlab.models.load import BackboneConfig, is_made, resolve
from alignlab.models.sighted import sees_at
from alignlab.models.templates import use_template
from alignlab.plan import build_stage
from alignlab.run import Store
from alignlab.spec import Spec, build
from alignlab.stages.stage import Stage

if TYPE_CHECKING:
    from alignlab.data.template import Tokenization
    from alignlab.stages.continued_pretrain import ContinuedPretrain

READ_TEXTS = {"pretrain", "continued_pretrain"}  # kinds of stages whose splits are other ones
PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """The ``tokens`` group of a configuration."""

    max_prompt: int
    max_completion: int


@dataclass(frozen=True)
class Setup:
    """A configuration as far as its data go; nothing of a model is loaded."""

    data: Source
    name: str  # of the data, for a person
    stages: Mapping[str, Stage]
    backbone: BackboneConfig
    lengths: Lengths
    limits: Limits
    cache: Path

    @classmethod
    def of(cls, file: str | None, overrides: Sequence[str]) -> Setup:
        """Compose a configuration, with ``file`` as its data if one is given.

        Raises:
            ConfigError: anything in the configuration that cannot be run.
        """
        from alignlab.commands.study import store_root

        # To look at a file that is named as a test set is not to train on it.
        stated = [] if file is None else [f"data.path={_quoted(file)}", "data.allow_test=true"]
        config = compose([*stated, *overrides])
        stages = {
            name: build_stage(node, f"stages.{name}") for name, node in config["stages"].items()
        }
        data = Spec.from_node(config["data"], "data")
        return cls(
            build(data),
            file or str(data.arguments.get("path") or data.arguments.get("id") or _short(data)),
            stages,
            typed.build(BackboneConfig, config["backbone"], "backbone"),
            typed.build(Lengths, config["tokens"], "tokens"),
            typed.build(Limits, config["gate"], "gate"),
            Store(store_root(config["store"] and Path(config["store"]))).cache,
        )

    def tokenizer(self) -> Any:
        """Return the tokenizer of the backbone, as training would load it, without torch."""
        path = self.backbone.path
        if path == "random:tiny" and not is_made(path, self.cache):
            from alignlab.models.tiny import byte_tokenizer

            # Making the model would need torch.
            return use_template(byte_tokenizer(), self.backbone.template)
        folder = resolve(path, self.cache, self.backbone.revision, weights=False)
        if _is_plain(folder):
            from transformers import PreTrainedTokenizerFast

            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder)
        return use_template(tokenizer, self.backbone.template)

    def processor(self) -> Any | None:
        """Return what makes tokens of images, for a backbone that sees; None for one of texts."""
        path = self.backbone.path
        if sees_at(path) is False:
            return None
        folder = resolve(path, self.cache, self.backbone.revision, weights=False)
        if not sees_at(str(folder)):
            return None
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(folder)

    def vocabulary(self) -> int | None:
        """Ids that the model has embeddings for; None where only the tokenizer can say."""
        path = self.backbone.path
        if path == "random:tiny" and not is_made(path, self.cache):
            return None
        folder = resolve(path, self.cache, self.backbone.revision, weights=False)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        return int(size) if size else None

    def reading(self, split: str) -> ContinuedPretrain | None:
        """The stage that reads the split as whole documents, with the backbone's tokenizer."""
        from alignlab.stages.continued_pretrain import ContinuedPretrain

        found = (s for s in self.stages.values() if isinstance(s, ContinuedPretrain))
        return next(found, None) if split.startswith("pretrain") else None

    def source(self, split: str) -> Source:
        """Where the split comes from: documents may be other data than all the rest."""
        stage = self.reading(split)
        source: Source = self.data if stage is None else build(stage.data)
        return source

    def tokenization(self, *, documents: bool = False) -> Tokenization:
        """How rows become tokens: cut to the limits, but for whole documents."""
        from alignlab.data.template import Tokenization

        if documents:
            return Tokenization(self.tokenizer(), None, None)
        limits = self.lengths.max_prompt, self.lengths.max_completion
        return Tokenization(self.tokenizer(), *limits, processor=self.processor())

    def splits(self, named: Sequence[str] = ()) -> tuple[str, ...]:
        """Splits to look at: those named, else all that the stages of the configuration read.

        Raises:
            ConfigError: a name that is no split.
        """
        for name in named:
            if name not in SPLITS:
                hint = did_you_mean(name, SPLITS)
                raise ConfigError(f"--split {name}: the splits are {', '.join(SPLITS)}.{hint}")
        if named:
            return tuple(dict.fromkeys(named))
        kinds = {stage.kind for stage in self.stages.values()}
        texts = [s for s in SPLITS if s.startswith("pretrain") and kinds & READ_TEXTS]
        if kinds <= READ_TEXTS:
            return tuple(texts)
        return (*texts, *(s for s in SPLITS if not s.startswith("pretrain")))


def _quoted(file: str) -> str:
    """Write a path so that Hydra reads it as it is, whatever characters it has."""
    return "'" + file.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _short(data: Spec) -> str:
    return data.target.rsplit(".", 1)[-1].lower()


def _is_plain(folder: Path) -> bool:
    """Whether the folder's tokenizer is its `tokenizer.json` and nothing else.

    Then transformers' own choice is the class that needs no torch, and we can name it ourselves.
    """
    config = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not config.is_file():
        return False
    stated = json.loads(config.read_text(encoding="utf-8"))
    return stated.get("tokenizer_class") in PLAIN_CLASSES and "auto_map" not in stated
