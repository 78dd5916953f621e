"""Tokens of a whole data set: made in one pass with bounded memory, checked, kept by content."""

from __future__ import annotations

import gc
import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.data.gate import gate as gate_module
from alignlab.data.gate.finding import Finding, Need
from alignlab.data.gate.gate import Gate
from alignlab.data.gate.left_out import left_out
from alignlab.data.group import PromptGroup
from alignlab.data.mapped import Mapped, Places, joined
from alignlab.data.prepared_shards import Maker
from alignlab.data.sources.source import Carded
from alignlab.data.template import Tokenization
from alignlab.data.token_shards import Arrays, Shard, read_arrays, read_shard, write_arrays
from alignlab.lease import held

if TYPE_CHECKING:
    from alignlab.data.gate.limits import Limits
    from alignlab.data.sources.source import Source

Select = Callable[[PromptGroup], PromptGroup | None]
"""What a stage makes of a group; None leaves it out."""

VERSION = 2  # part of the key of a set: raise it when what a set holds changes


@dataclass(frozen=True)
class Stats:
    """How much there is, how long it is, and what it cost to prepare."""

    rows: int
    tokens: int  # prompts counted once per group
    tokenized: int  # rows tokenised in this call; the others were found
    seconds: float
    prompt_lengths: Mapping[str, int]  # tokens at the 50th, 95th, 99th and 100th percentile
    completion_lengths: Mapping[str, int]
    prompts_truncated: float  # share
    completions_truncated: float


class Prepared(Mapped):
    """A data set as token groups that lie in mapped files, with what was found in it."""

    def __init__(
        self, shards: Sequence[Shard], places: Places, findings: Sequence[Finding], stats: Stats
    ) -> None:
        super().__init__(shards, places)
        self.findings, self.stats = tuple(findings), stats
        self.card: Mapping[str, Any] | None = None  # what the source did to the rows, if it says so


@dataclass(frozen=True)
class SplitOf(Iterable[PromptGroup]):
    """A split that is read again whenever it is gone through, and never held."""

    source: Source
    name: str

    def __iter__(self) -> Iterator[PromptGroup]:
        return self.source.stream(self.name)


def prepare(
    source: Source,
    split: str,
    tokenization: Tokenization,
    cache: Path,
    *,
    need: Need,
    held_out: Sequence[str] = (),
    select: Select | None = None,
    rows: int | None = None,
    limits: Limits | None = None,
    workers: int = 0,
) -> Prepared:
    """Tokens of one split of a source, through the gate; at once where that was done before.

    Args:
        source: where the groups come from.
        split: its split.
        tokenization: what makes tokens of them.
        cache: the store's cache folder; tokens are kept in ``tokens`` there, named by content.
        need: what the method asks of the verdicts.
        held_out: splits of the source whose prompts must not occur here.
        select: a function of a module, applied to every group; where it gives None, there is none.
        rows: most groups, None = all.
        limits: of the gate's checks, None = its own.
        workers: processes that tokenise, 0 = this one.

    Raises:
        DataError: rows that no format reads or that the tokenization refuses.
    """
    began = time.monotonic()
    said = [VERSION, tokenization.fingerprint(), _gate_code(), need, sorted(held_out), limits, rows]
    origin = [source.fingerprint(), split, inspect.getsource(select) if select else None]
    key = hashlib.sha256(repr([*said, *origin]).encode()).hexdigest()[:32]
    path = cache / "tokens" / f"{key}.set"
    path.parent.mkdir(parents=True, exist_ok=True)
    with held(path.with_suffix(".lease")):  # one process prepares, the others wait and read
        if (known := read_arrays(path)) and (found := _open(known, cache / "tokens", began)):
            return found
        stream = source.stream(split)
        if select is not None:
            stream = (group for one in stream if (group := select(one)) is not None)
        gate = Gate(
            tokenization.tokenizer,
            need=need,
            held_out={name: SplitOf(source, name) for name in held_out},
            limits=limits,
        )
        made, names = _pass(islice(stream, rows), tokenization, cache, gate, workers, began)
        made.findings = (*left_out(source, (split, *held_out), limits), *made.findings)
        made.card = (source.card() or None) if isinstance(source, Carded) else None
        _write(path, made, names)
    return made


def _write(path: Path, made: Prepared, names: Sequence[str]) -> None:
    findings = [asdict(finding) for finding in made.findings]
    notes = {"shards": names, "findings": findings, "card": made.card}
    write_arrays(path, made.places.arrays(), notes)


def _pass(
    groups: Iterable[PromptGroup],
    tokenization: Tokenization,
    cache: Path,
    gate: Gate,
    workers: int,
    began: float,
) -> tuple[Prepared, list[str]]:
    """The one pass; also the names of the shards."""
    maker = Maker(tokenization, cache / "tokens", workers)
    shards: list[Shard] = []
    names: list[str] = []
    places = Places()
    gc.freeze()  # what was there before is not searched for garbage again and again
    try:
        for made in maker.shards(groups):
            for place in made.chunk.places:
                places.add(place)
            gate.see(made.chunk.groups, made.tokens)
            shards.append(made.shard)
            names.append(made.name)
    finally:
        gc.unfreeze()
    stats = _stats(shards, maker.made, time.monotonic() - began)
    return Prepared(shards, places, gate.findings(), stats), names


def _open(known: Arrays, folder: Path, began: float) -> Prepared | None:
    """A data set whose shards are all there and whole, else None."""
    shards = [read_shard(folder / name) for name in known.notes["shards"]]
    if any(shard is None for shard in shards):
        return None
    whole = [shard for shard in shards if shard is not None]
    findings = [
        Finding(**{**values, "rows": tuple(values["rows"]), "places": tuple(values["places"])})
        for values in known.notes["findings"]
    ]
    stats = _stats(whole, 0, time.monotonic() - began)
    found = Prepared(whole, Places.of(known.arrays), findings, stats)
    found.card = known.notes["card"]
    return found


def _stats(shards: Sequence[Shard], tokenized: int, seconds: float) -> Stats:
    lengths = joined([shard.lengths for shard in shards])
    cut = joined([shard.arrays["cut"] for shard in shards])
    prompt = joined([shard.is_prompt for shard in shards]).astype(bool)
    return Stats(
        rows=int(prompt.sum()),
        tokens=int(lengths.sum()),
        tokenized=tokenized,
        seconds=seconds,
        prompt_lengths=_quantiles(lengths[prompt]),
        completion_lengths=_quantiles(lengths[~prompt]),
        prompts_truncated=float(cut[prompt].mean()) if prompt.any() else 0.0,
        completions_truncated=float(cut[~prompt].mean()) if (~prompt).any() else 0.0,
    )


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    shares = {"50%": 0.5, "95%": 0.95, "99%": 0.99, "100%": 1.0}
    if not len(lengths):
        return dict.fromkeys(shares, 0)
    found = np.quantile(lengths, list(shares.values()), method="inverted_cdf")
    return dict(zip(shares, map(int, found), strict=True))


def _gate_code() -> str:
    """Hash of the gate's own files: a check that is new or changed is run."""
    digest = hashlib.sha256()
    for file in sorted(Path(gate_module.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
