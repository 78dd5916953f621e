"""Counts the operations that torch runs inside of a ``with``."""

from __future__ import annotations

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class Counting(TorchDispatchMode):
    """Matrix products, scatters (one per chunk of gradients) and the rows of logits at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        name = "mm" if name == "addmm" else name
        self.calls[name] += 1
        if name == "logsumexp":
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))
