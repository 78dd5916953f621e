"""One backbone, many views: policy, reference, reward and value of a stage.

With an adapter rank the views are adapters on one frozen base in memory; without one they are
separate models. A view is active from the start of its forward pass to the end of its backward
pass, and views do not nest: gradient checkpointing would recompute with the wrong adapter.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from alignlab.errors import ConfigError, did_you_mean
from alignlab.models.bodies import VIEW_FILE, Base, Bodies, Change, Changing, bodies_for, made_for
from alignlab.models.dropout import ResidualDropout, add_residual_dropout
from alignlab.models.heads import FILE as HEAD_FILE
from alignlab.models.heads import ScalarHead
from alignlab.models.joint_adapters import joint_adapters
from alignlab.models.layout import chosen_layout
from alignlab.models.load import BackboneConfig, resolve, set_modes
from alignlab.models.sharding import Placing, Sharding, elements, engine_for, gathered, sharding_of
from alignlab.models.templates import require_same_template, template_hash, use_template
from alignlab.models.view import View, autocast
from alignlab.models.vision import sight_for
from alignlab.models.weights import Reader, compute_dtype, store, weights_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Backbone:
    """A base model and the views on it. Use `load`, then `add`, then ``with view(name)``."""

    def __init__(
        self,
        config: BackboneConfig,
        cache: Path,
        device: torch.device | str,
        seed: int,
        place: Placing | None = None,
    ) -> None:
        self.config, self.place = config, place
        self.device = torch.device(device)
        self.cache = cache  # folder of the store
        self._seed = seed
        self._heads: dict[str, ScalarHead] = {}
        self._scored: set[str] = set()  # names of the views that have one, before they are made
        self._trainable: dict[str, bool] = {}
        self._active: str | None = None
        self._training = False
        self.sharding: Sharding | None = None  # how passes go through an engine, where one trains

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        cache: Path,
        device: torch.device | str = "cpu",
        *,
        base: Path | None = None,
        seed: int = 0,
        place: Placing | None = None,
    ) -> Backbone:
        """Open the base model that ``config`` names, or the model folder ``base`` in its place.

        ``seed`` and a view's name fix the start of its adapter and scalar head. ``place`` puts
        every model that is read where it stays; without one it is moved to the device.

        Raises:
            ConfigError: no such model, or a forced layout that does not fit it.
        """
        backbone = cls(config, cache, device, seed, place)
        folder = base or resolve(config.path, cache, config.revision)
        backbone._open(str(base or config.path), folder)
        return backbone

    def _open(self, name: str, folder: Path) -> None:
        from transformers import AutoConfig, AutoTokenizer

        if not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} is not a whole model (no config.json); merge it first.")
        self._base_name, self.base_folder = name, folder
        self._settled = False  # whether the tokenizer is that of a run
        self.__dict__.pop("base_sha256", None)
        self.model_config = AutoConfig.from_pretrained(folder)
        self.sight = sight_for(self.config, self.model_config, folder, self.place)
        self.processor = self.sight.processor if self.sight else None  # of images
        self.tokenizer: PreTrainedTokenizerBase = use_template(
            self.processor.tokenizer if self.processor else AutoTokenizer.from_pretrained(folder),
            self.config.template,
        )
        self.layout = chosen_layout(self.config.layout, self.model_config, self.device)
        self.dtype = compute_dtype(self.config.dtype, self.device)
        place = self.place
        read = Reader(
            "cpu" if place else self.device,
            self.dtype,
            self.layout[0],
            checkpointing=self.config.gradient_checkpointing,
            empty=place is not None and not place.reads,
            sight=self.sight,
        )
        base = Base(
            folder, name, read, partial(store, dtype=self.dtype), place, self.tokenizer,
            self.device, self.dtype, self._scored,
        )  # fmt: skip
        self._bodies: Bodies = bodies_for(self.config.adapter, base)

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, in the order they were added."""
        return tuple(self._trainable)

    @property
    def dtype_name(self) -> str:
        """Number format of the matrix products, as the run record names it."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def base_sha256(self) -> str:
        """Hash of the base model's weight files."""
        return weights_sha256(self.base_folder)

    def has(self, name: str) -> bool:
        """Whether there is a view ``name``."""
        return name in self._trainable

    def add(self, name: str, *, source: Path | None, trainable: bool, head: bool = False) -> None:
        """Add a view: a copy of the model folder ``source`` of a run, or the base as it is.

        Args:
            head: with a scalar head, the one in ``source`` if it has one, else a fresh one.

        Raises:
            ConfigError: ``source`` belongs to another base model than the views that are there.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or self.has(name):
            raise ValueError(f"A view needs a new name of small letters, not {name!r}.")
        self._refuse_while_active("add")
        own = self._prepare(source) if source else None
        if source and (source / "tokenizer_config.json").is_file():
            self._take_tokenizer(source)
        self._scored |= {name} if head else set()
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        with torch.random.fork_rng():
            torch.manual_seed(int.from_bytes(digest[:4], "little"))
            self._bodies.add(name, own, trainable=trainable)
            scalar = ScalarHead(self.model_config.get_text_config().hidden_size) if head else None
        self._trainable[name] = trainable
        if scalar is not None:
            if source and (source / HEAD_FILE).is_file():
                scalar.load(source)
            self._heads[name] = scalar.to(self.device).requires_grad_(trainable)

    def _prepare(self, source: Path) -> Path | None:
        """Make the base the one that ``source`` needs; returns what its body is then read from."""
        made = made_for(source, self._bodies)
        if made["mode"] == "full":
            if self._bodies.shares_base:  # fresh adapters on a full model
                if weights_sha256(source) != self.base_sha256:
                    self._change_base(str(source), source, source)
                return None
            return source
        if made.get("base_sha256", self.base_sha256) != self.base_sha256:
            self._change_base(made["base"], resolve(made["base"], self.cache), source)
            if made["base_sha256"] != self.base_sha256:
                raise ConfigError(f"{source}: its base model {made['base']} has changed since.")
        return source

    def _take_tokenizer(self, source: Path) -> None:
        """Go on with the tokenizer of a run, whose chat template must be the one configured."""
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(source)
        settled = bool(self.views) or self._settled
        if settled or self.config.template is not None:
            mine, other = template_hash(self.tokenizer), template_hash(theirs)
            require_same_template(mine, other, source.parent.name)
        if not settled:
            self.tokenizer, self._settled = theirs, True

    def _change_base(self, name: str, folder: Path, source: Path) -> None:
        if self.views:
            raise ConfigError(
                f"{source} was trained on the base model {name}, but this stage already uses "
                f"{self._base_name}; one backbone cannot serve both. Train all of a stage's inputs "
                "from one base, or set adapter=full."
            )
        self._open(name, folder)

    def drop_residuals(self, name: str, schedule: ResidualDropout) -> None:
        """Train view ``name`` with residual dropout; with adapters, every view that trains.

        Raises:
            ConfigError: an architecture whose layers are not known.
        """
        self._known(name)
        add_residual_dropout(self._bodies.activate(name), schedule)

    @contextmanager
    def view(self, name: str, *, alike: bool = False) -> Iterator[View]:
        """Activate ``name`` until the block ends, backward pass included.

        Of weights in shares, a pass that trains gathers each where it is used, and so does one that
        is ``alike`` on every process; otherwise the view's are whole inside the block.

        Raises:
            RuntimeError: inside the block of a view.
        """
        self._known(name)
        self._refuse_while_active(f"view({name!r})")
        engine = engine_for(self.sharding, training=self._training, alike=alike)
        bodies, heads = (engine.bodies, engine.heads) if engine else (self._bodies, self._heads)
        model = bodies.activate(name)
        model.train(self._training and self._trainable[name])
        self._active = name
        try:
            whole = nullcontext() if engine else self.whole(name)
            with whole, autocast(self.device, self.dtype), joint_adapters(model):
                yield View(name, model, heads.get(name), self.layout[0], self.dtype, engine)
        finally:
            self._active = None

    def whole(self, name: str) -> AbstractContextManager[None]:
        """Gather the view's weights for the block, where processes hold shares; all must enter."""
        head = self._heads[name].parameters() if name in self._heads else ()
        return gathered([*self._bodies.all_parameters(name), *head])

    def shard(self, *, weights: bool) -> Sharding:
        """Give all views as one module to an engine that shards what they train, or all weights."""
        self.sharding = sharding_of(self._bodies, self._heads, self.views, weights=weights)
        return self.sharding

    def train_mode(self, on: bool) -> None:
        """Turn dropout and gradient checkpointing of trainable views on or off (at first: off)."""
        self._refuse_while_active("train_mode")
        self._training = on

    def trainable_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Trained parameters of a view by name, its scalar head's as ``head.…``."""
        self._known(name)
        found = self._bodies.parameters(name)
        if name in self._heads and self._trainable[name]:
            found = found | {f"head.{n}": p for n, p in self._heads[name].named_parameters()}
        return found

    def parameter_counts(self, name: str) -> tuple[int, int]:
        """Parameters that the view computes with, and how many of them are trained."""
        self._known(name)
        head = self._heads[name].parameters() if name in self._heads else ()
        total = self._bodies.count(name) + sum(map(elements, head))
        return total, sum(map(elements, self.trainable_parameters(name).values()))

    def changing(self, names: Sequence[str]) -> Change | None:
        """What the technique does to a training of these views beside its updates, if anything."""
        return self._bodies.changing(names) if isinstance(self._bodies, Changing) else None

    def set_normalization(self, name: str, mean: float, std: float) -> None:
        """Rescale a view's scores: those with this mean and deviation get mean 0, deviation 1."""
        self._known(name)
        self._heads[name].normalize(mean, std)

    def save(self, name: str, folder: Path) -> None:
        """Write the view, inside of `whole`, as a model or peft folder with head and tokenizer."""
        self._known(name)
        folder.mkdir(parents=True, exist_ok=True)
        self._bodies.save(name, folder)
        (self.processor or self.tokenizer).save_pretrained(folder)
        if name in self._heads:
            self._heads[name].save(folder)
        facts: dict[str, Any] = {"mode": self._bodies.mode, "base": self._base_name}
        facts |= {"base_sha256": self.base_sha256, "head": name in self._heads}
        (folder / VIEW_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        set_modes(folder)

    def drop(self, name: str) -> None:
        """Free a view."""
        self._known(name)
        self._refuse_while_active("drop")
        self._bodies.drop(name)
        self._heads.pop(name, None)
        self._scored.discard(name)
        del self._trainable[name]

    def _known(self, name: str) -> None:
        if name not in self._trainable:
            raise KeyError(f"No view {name!r}.{did_you_mean(name, self.views)}")

    def _refuse_while_active(self, call: str) -> None:
        if self._active is not None:
            raise RuntimeError(f"{call} inside the view {self._active!r}: views do not nest.")
