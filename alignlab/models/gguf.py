"""Reader of GGUF files: metadata, and tensors dequantised to float32 with numpy alone.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.errors import DataError

_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # values that share a scale


def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4").copy()


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f2").astype(np.float32)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    """``d·q``: a half-precision scale, then 32 signed bytes."""
    blocks = raw.reshape(-1, 2 + _BLOCK)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return scale * blocks[:, 2:].view(np.int8)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    """``d·q + m``: two half-precision numbers, then 32 nibbles, the low ones first."""
    blocks = raw.reshape(-1, 4 + _BLOCK // 2)
    scale, least = (blocks[:, i : i + 2].copy().view("<f2").astype(np.float32) for i in (0, 2))
    nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return scale * nibbles + least


# ggml type -> (name, bytes, values they hold, decoder)
_TYPES: dict[int, tuple[str, int, int, Callable[[np.ndarray], np.ndarray]]] = {
    0: ("F32", 4, 1, _f32),
    1: ("F16", 2, 1, _f16),
    3: ("Q4_1", 4 + _BLOCK // 2, _BLOCK, _q4_1),
    8: ("Q8_0", 2 + _BLOCK, _BLOCK, _q8_0),
}


class Gguf:
    """An open GGUF file: ``metadata`` by key, `tensors` one after the other.

    Raises:
        DataError: not a GGUF file of version 2 or 3, or a tensor of a type that is not read here.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = np.memmap(path, dtype=np.uint8, mode="r")
        self._at = 0
        magic, version = self._bytes(4), self._read("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise DataError(f"{path} is not a GGUF file of version 2 or 3.")
        tensors, entries = self._read("Q"), self._read("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = self._string()
            self.metadata[key] = self._value(self._read("I"))
        self._infos = [self._info() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        self._data = -(-self._at // alignment) * alignment

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float32 array of every tensor, outermost dimension first."""
        for name, shape, kind, offset in self._infos:
            if kind not in _TYPES:
                raise DataError(f"{self._path}: tensor {name} has the unknown ggml type {kind}.")
            _, size, values, decode = _TYPES[kind]
            start = self._data + offset
            raw = np.asarray(self._raw[start : start + math.prod(shape) // values * size])
            yield name, decode(raw).reshape(shape)

    def _bytes(self, count: int) -> bytes:
        self._at += count
        return self._raw[self._at - count : self._at].tobytes()

    def _read(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._bytes(self._read("Q")).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._read("I"), self._read("Q")
            return [self._value(inner) for _ in range(length)]
        return self._read(_SCALARS[kind])

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._read("I")
        shape = tuple(self._read("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._read("I"), self._read("Q")
