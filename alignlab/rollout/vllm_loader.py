"""What vLLM's worker learns to do besides: read weights from a folder in place of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Loader:
    """Mixed into vLLM's worker (``worker_extension_cls``), which has the ``model_runner``."""

    model_runner: Any

    def load_folder(self, folder: str) -> int:
        """Load all weights of a Hugging Face folder; return how many tensors there were."""
        count = 0

        def counted() -> Iterator[tuple[str, Any]]:
            nonlocal count
            for name, tensor in tensors_of(Path(folder)):
                count += 1
                yield name, tensor

        self.model_runner.model.load_weights(counted())
        return count


def tensors_of(folder: Path) -> Iterator[tuple[str, Any]]:
    """Tensors of a model folder by name, one at a time."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                yield name, opened.get_tensor(name)
