"""The scalar head of a reward or value view."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.models.encoders import Pooling

FILE = "head.safetensors"


class ScalarHead(nn.Module):
    """``r = gain · (w · h + b) + offset`` in fp32; gain and offset normalise and are not trained.

    Weights start as N(0, 1/(H+1)) (Stiennon et al. 2020, appendix; standard deviation
    ``1/√(H+1)``), the bias at zero.
    """

    gain: Tensor
    offset: Tensor
    pooling: Pooling = "first"  # which state of an encoder it reads; kept in the file

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1, dtype=torch.float32)
        with torch.no_grad():
            self.linear.weight.normal_(0.0, (hidden + 1) ** -0.5)
            self.linear.bias.zero_()
        self.register_buffer("gain", torch.ones((), dtype=torch.float32))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float32))

    def forward(self, hidden: Tensor) -> Tensor:
        """Scalars ``(…,)`` of hidden states ``(…, H)``."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.gain * self.linear(hidden.float())[..., 0] + self.offset

    def normalize(self, mean: float, std: float) -> None:
        """Rescale so that scores with this mean and standard deviation get 0 and 1."""
        if not std > 0:
            raise ValueError(f"Scores with standard deviation {std} cannot be normalised.")
        self.offset.sub_(mean).div_(std)
        self.gain.div_(std)

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors``."""
        from safetensors.torch import save_file

        state = {k: v.contiguous().cpu() for k, v in self.state_dict().items()}
        save_file(state, folder / FILE, {} if self.pooling == "first" else {"pooling": "mean"})

    def load(self, folder: Path) -> None:
        """Read ``head.safetensors``.

        Raises:
            ConfigError: the head is of another width.
        """
        from safetensors import safe_open
        from safetensors.torch import load_file

        state = load_file(folder / FILE)
        with safe_open(folder / FILE, "pt") as file:
            self.pooling = "mean" if (file.metadata() or {}).get("pooling") == "mean" else "first"
        found, wanted = state["linear.weight"].shape[1], self.linear.in_features
        if found != wanted:
            raise ConfigError(f"{folder / FILE}: made for hidden size {found}, not {wanted}.")
        self.load_state_dict(state)
