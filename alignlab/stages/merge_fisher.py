"""Fisher-weighted merging: every weight counts by how much it matters to its own model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, build
from alignlab.stages.merge import Merge, require_role
from alignlab.stages.stage import filling
from alignlab.typed import Range

if TYPE_CHECKING:
    from torch import Tensor

    from alignlab.engine.distributed import Engine
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class MergeFisher(Merge):
    """`Merge` by the diagonal of every model's Fisher information (Matena & Raffel 2022).

    2111.09832. The information is that of EWC (`alignlab.stages.fisher`), each model's at its
    own weights, of ``data`` or of what ``own`` names for it: the task that it learned. Of adapters
    it is that of the matrices that they adapt.
    """

    importances: ClassVar[bool] = True

    backbone: BackboneConfig
    data: Spec
    own: Mapping[str, Spec]  # input → data of this model alone
    split: str
    rows: Annotated[int, Range(min=1)]
    labels: Literal["data", "sampled"]
    max_prompt: Annotated[int, Range(min=1)]
    max_completion: Annotated[int, Range(min=1)]

    def validate(self) -> None:
        """What `Merge` asks for, and data of models that there are."""
        super().validate()
        for name in self.own:
            require_role(name, filling("model", self.inputs), "own")

    def fingerprint(self) -> str:
        """Fingerprint of the base model and of all data."""
        own = [build(data).fingerprint() for _, data in sorted(self.own.items())]
        return " ".join([super().fingerprint(), *own])

    def weighed(
        self, inputs: Mapping[str, Run], run: Run, engine: Engine
    ) -> Sequence[Mapping[str, Tensor]]:
        """Fisher information of every model, by the names of its tensors or adapted matrices."""
        from alignlab.models.changes import changes_of
        from alignlab.stages.anchor_terms import Scene
        from alignlab.stages.fisher import Asked, fisher
        from alignlab.stages.session import open_backbone

        found = []
        for name in filling("model", self.inputs):
            backbone = open_backbone(self.backbone, run, engine, self.seed)
            source = inputs[name].model_dir
            backbone.add("policy", source=source, trainable=True)
            scene = Scene(backbone, "policy", source, engine, self.seed, lambda step: ())
            data = self.own.get(name, self.data)
            asked = Asked(
                data, self.split, self.rows, self.labels, self.max_prompt, self.max_completion
            )
            changes = changes_of(backbone, "policy")
            names = [change.name for change in changes]
            found.append(dict(zip(names, fisher(asked, scene, changes), strict=True)))
        return found
