"""Low-rank adapters and their relatives: what is added to the linear layers of a frozen base.

LoRA adds ``(α/r)·B A`` to a frozen matrix W, with B zero at the start (Hu et al. 2021,
https://arxiv.org/abs/2106.09685). The others here change the scale, the learning rates, the start
or the form of what is added; peft computes all of them. Imports nothing heavy.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.annotations import Range
from alignlab.errors import ConfigError
from alignlab.models.techniques import Sizes, Technique

if TYPE_CHECKING:
    from alignlab.models.bodies import Base, Bodies
    from alignlab.models.dimensions import Dimensions, Shapes

_NOT_ADAPTED = ("embed", "lm_head", "wte", "wpe")  # what "all-linear" leaves out

Modules = str | tuple[str, ...]  # "all-linear", one name or several


@dataclass(frozen=True, kw_only=True)
class LowRank(Technique):
    """Adapters of peft on one base; a stage may hold several, one for every view."""

    # Techniques whose frozen views may stand beside: they compute with the same base.
    family: ClassVar[frozenset[str]] = frozenset({"lora", "dora", "rslora", "lora_plus"})

    @property
    def mode(self) -> str:
        """The technique's name."""
        return str(getattr(self, "method"))  # noqa: B009 (every class but `Adapter` has it)

    @abstractmethod
    def peft_config(self) -> Any:
        """Configuration of a fresh adapter."""

    def continued(self, config: Any) -> Any:
        """Adjust the configuration of an adapter that was saved, to be trained here."""
        return config

    def bodies(self, base: Base) -> Bodies:
        """Adapters on one base."""
        from alignlab.models.adapters import AdapterBodies

        return AdapterBodies(base.frozen(), self, base.name)


@dataclass(frozen=True, kw_only=True)
class Adapter(LowRank):
    """What is trained: low-rank adapters (Hu et al. 2021), or every parameter (``rank`` None)."""

    vllm: ClassVar[bool] = True

    rank: Annotated[int, Range(min=1)] | None
    alpha: Annotated[float, Range(min=0)]  # the update is scaled by alpha / rank
    dropout: Annotated[float, Range(min=0, max=1)]
    target_modules: Modules

    @property
    def shares_base(self) -> bool:
        """Adapters do; whole models do not."""
        return self.rank is not None

    @property
    def mode(self) -> str:
        """``full`` or ``lora``."""
        return "full" if self.rank is None else "lora"

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """``rank · (inputs + outputs)`` for every adapted matrix, or everything."""
        if self.rank is None:
            return Sizes(trained=None)
        return lora_sizes(shapes, self.rank, self.target_modules)

    def peft_config(self) -> Any:
        """Plain LoRA."""
        return lora_config(self.rank or 0, self.alpha, self.dropout, self.target_modules)

    def continued(self, config: Any) -> Any:
        """Dropout is this stage's; rank and scale are the adapter's."""
        config.lora_dropout = self.dropout
        return config

    def bodies(self, base: Base) -> Bodies:
        """Adapters on one base, or separate models."""
        if self.rank is not None:
            return super().bodies(base)
        from alignlab.models.copies import CopyBodies

        return CopyBodies(base.folder, base.read, base.store, base.place)


@dataclass(frozen=True, kw_only=True)
class Variant(LowRank):
    """Fields that LoRA's variants share with it."""

    rank: Annotated[int, Range(min=1)]  # inner dimension r
    alpha: Annotated[float, Range(min=0)]  # the update is scaled by alpha / rank
    dropout: Annotated[float, Range(min=0, max=1)]  # on the adapter's input, while training
    target_modules: Modules

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """As plain LoRA's."""
        return lora_sizes(shapes, self.rank, self.target_modules)

    def peft_config(self) -> Any:
        """LoRA with what `options` adds."""
        return lora_config(
            self.rank, self.alpha, self.dropout, self.target_modules, **self.options()
        )

    def options(self) -> dict[str, Any]:
        """Fields of peft's ``LoraConfig`` that make the variant."""
        return {}

    def continued(self, config: Any) -> Any:
        """Dropout is this stage's; rank and scale are the adapter's."""
        config.lora_dropout = self.dropout
        return config


@dataclass(frozen=True, kw_only=True)
class DoRA(Variant):
    """Magnitude and direction apart (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5).

    ``W' = m · (W + (α/r)·B A) / ‖W + (α/r)·B A‖`` with one trained m per output (‖·‖ is over the
    inputs, m starts as ‖W‖), and the norm treated as a constant in the backward pass (section
    4.3).
    """

    zero: ClassVar[tuple[int, str]] = (2, "its norm needs the whole frozen matrix at every pass")

    method: Literal["dora"] = "dora"

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """As LoRA's, and one magnitude per output of every adapted matrix."""
        plain = lora_sizes(shapes, self.rank, self.target_modules)
        own = plain.added + sum(s[0] for s in adapted_shapes(shapes, self.target_modules))
        # `W x` and `B A x` are kept: m learns from them.
        return replace(plain, trained=own, added=own, freed=1, kept=2)

    def options(self) -> dict[str, Any]:
        """``use_dora``."""
        return {"use_dora": True}


@dataclass(frozen=True, kw_only=True)
class RankStabilizedLoRA(Variant):
    """Scaled by α/√r, so that a larger rank does not slow learning (Kalajdzievski 2023).

    https://arxiv.org/abs/2312.03732: the one scale for which neither activations nor gradients
    grow or vanish with r.
    """

    vllm: ClassVar[bool] = True

    method: Literal["rslora"] = "rslora"

    def options(self) -> dict[str, Any]:
        """``use_rslora``."""
        return {"use_rslora": True}


@dataclass(frozen=True, kw_only=True)
class LoRAPlus(Variant):
    """LoRA whose matrices B learn faster than its A (Hayou et al. 2024).

    https://arxiv.org/abs/2402.12354: with Adam, the rate of B is λ times that of A, λ ≫ 1 (about
    2⁴ there). The optimizer's rate is that of A (and of a scalar head).
    """

    vllm: ClassVar[bool] = True

    method: Literal["lora_plus"] = "lora_plus"
    ratio: Annotated[float, Range(min=0, min_open=True)]  # λ

    @property
    def rates(self) -> Mapping[str, float]:
        """λ on every B."""
        return {"*.lora_B.*": self.ratio}


@dataclass(frozen=True, kw_only=True)
class Decomposed(Variant):
    """Adapters that begin as a part of the weights (see `alignlab.models.decomposed`)."""

    vllm: ClassVar[bool] = True
    family: ClassVar[frozenset[str]] = frozenset()  # no other reads two adapters in one
    zero: ClassVar[tuple[int, str]] = (2, "it decomposes the whole frozen matrices at the start")

    @property
    @abstractmethod
    def way(self) -> str:
        """How peft calls the decomposition."""

    def sizes(self, shapes: Shapes, dimensions: Dimensions) -> Sizes:
        """As LoRA's; what was taken out of the weights is kept too, and not trained."""
        plain = lora_sizes(shapes, self.rank, self.target_modules)
        return Sizes(
            trained=plain.added, added=2 * plain.added, rank=2 * self.rank, adapted=plain.adapted
        )

    def bodies(self, base: Base) -> Bodies:
        """Adapters on one base, each beside what it began as."""
        from alignlab.models.decomposed import DecomposedBodies

        return DecomposedBodies(base.frozen(), self, base.name)


@dataclass(frozen=True, kw_only=True)
class PiSSA(Decomposed):
    """The adapter begins as the principal part of the weight (Meng et al. 2024).

    https://arxiv.org/abs/2404.02948: of ``W = U S Vᵀ`` the r largest singular values,
    ``A = √S_r V_rᵀ`` and ``B = U_r √S_r``; the rest of W is frozen.
    """

    method: Literal["pissa"] = "pissa"
    iterations: Annotated[int, Range(min=1)] | None  # of a randomised SVD; None: the exact one

    @property
    def way(self) -> str:
        """An exact or a randomised singular value decomposition."""
        return "pissa" if self.iterations is None else f"pissa_niter_{self.iterations}"


@dataclass(frozen=True, kw_only=True)
class OLoRA(Decomposed):
    """The adapter begins as the first columns of a QR decomposition (Büyükakyüz 2024).

    https://arxiv.org/abs/2406.01775: ``W = Q R``, ``B = Q[:, :r]`` (orthonormal) and
    ``A = R[:r]``; the rest of W is frozen.
    """

    method: Literal["olora"] = "olora"

    @property
    def way(self) -> str:
        """A QR decomposition."""
        return "olora"


def lora_config(
    rank: int, alpha: float, dropout: float, target_modules: Modules, **options: Any
) -> Any:
    """Make peft's configuration of a fresh LoRA adapter."""
    from peft import LoraConfig

    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, **options}
    return LoraConfig(
        **settings,
        lora_dropout=dropout,
        target_modules=peft_modules(target_modules),
        task_type="CAUSAL_LM",
    )


def peft_modules(modules: Modules) -> str | list[str]:
    """Names of modules as peft takes them: it reads a text that is no keyword as a pattern."""
    names = [modules] if isinstance(modules, str) else list(modules)
    return "all-linear" if modules == "all-linear" else names


def lora_sizes(shapes: Shapes, rank: int, modules: Modules) -> Sizes:
    """``rank · (inputs + outputs)`` for every adapted matrix."""
    matrices = adapted_shapes(shapes, modules)
    own = rank * sum(map(sum, matrices))
    return Sizes(trained=own, added=own, rank=rank, adapted=len(matrices))


def adapted_shapes(shapes: Shapes, modules: str | Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes of the matrices that ``target_modules`` names.

    Raises:
        ConfigError: there are none.
    """
    names = (modules,) if isinstance(modules, str) else tuple(modules)

    def adapted(tensor: str, shape: tuple[int, ...]) -> bool:
        if len(shape) != 2 or not tensor.endswith(".weight"):
            return False
        if names == ("all-linear",):
            return not any(part in tensor for part in _NOT_ADAPTED)
        return tensor.removesuffix(".weight").endswith(tuple(f".{name}" for name in names))

    found = [shape for name, shape in shapes.items() if adapted(name, shape)]
    if not found:
        raise ConfigError(f"adapter.target_modules={modules}: the model has no such linear layer.")
    return found
