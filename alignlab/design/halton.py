"""Points that fill a space evenly: Halton's sequence, shifted at random and always alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29)


def radical_inverse(number: int, base: int) -> float:
    """Mirror the digits of ``number`` at the point: 6 = 110₂ becomes 0.011₂ = 3/8."""
    found, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        found += digit * scale
    return found


def halton(names: Sequence[str], seed: int) -> Iterator[tuple[float, ...]]:
    """Points of [0, 1)^d for the named dimensions, without end (Halton 1960).

    The i-th point has the coordinates φ_p(i) for the first d primes p. Each dimension is then
    rotated by an offset made from ``seed`` and its name (Cranley and Patterson 1976), so a
    dimension of one name has the same points in every search where it has the same place.

    Raises:
        ValueError: more dimensions than primes are known here.
    """
    if len(names) > len(PRIMES):
        raise ValueError(f"at most {len(PRIMES)} fields can be searched together")
    offsets = [_offset(seed, name) for name in names]
    number = 0
    while True:
        number += 1  # the point of 0 is the corner, and the same in every dimension
        yield tuple(
            (radical_inverse(number, base) + offset) % 1.0
            for base, offset in zip(PRIMES, offsets, strict=False)
        )


def _offset(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
