"""What an annotate run holds: a line per prompt group, and its token groups, mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from alignlab.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import PromptGroup, TokenGroup, Verdict
    from alignlab.models.backbone import Backbone
    from alignlab.rewards.apart import Encodes
    from alignlab.run import Run

FILE = "annotations.jsonl"
ENCODED = 256  # lines that are encoded again at a time

Row = Mapping[str, Any]


def lines(
    groups: Sequence[PromptGroup], tokens: Sequence[TokenGroup], validation_share: float
) -> Iterator[str]:
    """Groups and token ids, a line each; the split is a stable hash of the group's id."""
    for group, token in zip(groups, tokens, strict=True):
        digest = hashlib.sha256(f"validation:{group.id}".encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") / 2**64 < validation_share
        row = {
            "row": token.row,
            "id": group.id,
            "split": "validation" if held_out else "train",
            "prompt": group.prompt,
            "completions": list(group.completions),
            "verdict": asdict(group.verdict),
            "prompt_ids": token.prompt.tolist(),
            "completion_ids": [c.tolist() for c in token.completions],
            "truncated": list(token.truncated),
            "masks": [None if mask is None else mask.tolist() for mask in token.masks],
            "meta": dict(group.meta),
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"


def whole_chunks(path: Path, size: int) -> int:
    """Lines in the whole chunks of ``size`` that an interrupted run left; what follows is cut off.

    Chunks are what was sampled together, so the file goes on as if nothing had happened.
    """
    if not path.is_file():
        return 0
    whole = end = position = 0
    with path.open("rb+") as file:
        for number, line in enumerate(file, start=1):
            position += len(line)
            if number % size == 0 and line.endswith(b"\n"):
                whole, end = number, position
        file.truncate(end)
    return whole


def written(path: Path, lines: int) -> Iterator[Row]:
    """The first ``lines`` lines of the file, while others are added to it."""
    if lines:
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, islice(file, lines))


def restored(group: PromptGroup, row: Row) -> PromptGroup:
    """A group with the sampled completions and the verdict that its line says it was given."""
    return replace(
        group,
        completions=tuple(row["completions"]),
        verdict=verdict_of(row["verdict"]),
        meta=row["meta"],
    )


def write(
    path: Path, groups: Sequence[PromptGroup], tokens: Sequence[TokenGroup], validation_share: float
) -> None:
    """Write groups and token ids at hand to a file."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines(groups, tokens, validation_share))


def read(run: Run, split: str, encoding: Encodes | None = None) -> Sequence[TokenGroup]:
    """Token groups of one split of a finished annotate run, in the order of writing.

    With an ``encoding`` the texts are encoded again, for a model with a tokenizer of its own.

    The file is read once, line by line, into mapped shards of the store's cache, which every later
    stage finds by the file's content.
    """
    import numpy as np

    from alignlab.data.mapped import Selection, keep, kept
    from alignlab.run import Store

    with (run.path / FILE).open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    if encoding is not None:
        key = hashlib.sha256(f"{key} {encoding.fingerprint()}".encode()).hexdigest()[:32]
    folder = Store(run.path.parent).cache / "annotations"
    found = kept(folder, key)
    if found is None:
        splits: list[str] = []
        keep(folder, key, _token_groups(run.path / FILE, splits, encoding), {"splits": splits})
        found = kept(folder, key)
        assert found is not None, f"{folder} cannot be read back; is the disk full?"
    groups, notes = found
    return Selection(groups, np.flatnonzero(np.array(notes["splits"]) == split))


def _token_groups(path: Path, splits: list[str], encoding: Encodes | None) -> Iterator[TokenGroup]:
    """Token groups of all lines; the split of each is appended to ``splits``."""
    with path.open(encoding="utf-8") as file:
        rows: Iterator[Row] = map(json.loads, file)
        while part := list(islice(rows, ENCODED)):
            splits += [row["split"] for row in part]
            if encoding is None:
                yield from map(token_group, part)
            else:
                yield from encoding.groups(list(map(text_group, part)), [r["row"] for r in part])


def texts_of(run: Run, split: str) -> Iterator[PromptGroup]:
    """The texts of one split of a finished annotate run, in the order of writing."""
    with (run.path / FILE).open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["split"] == split:
                yield text_group(row)


def text_group(row: Row) -> PromptGroup:
    """The texts of one line."""
    from alignlab.data.group import PromptGroup

    def text(found: Any) -> Any:
        return found if isinstance(found, str) else tuple(found)

    completions = tuple(map(text, row["completions"]))
    verdict = verdict_of(row["verdict"])
    return PromptGroup(text(row["prompt"]), completions, verdict, id=row["id"], meta=row["meta"])


def token_group(row: Row) -> TokenGroup:
    """The tokens of one line."""
    import numpy as np

    from alignlab.data.group import TokenGroup

    return TokenGroup(
        prompt=np.asarray(row["prompt_ids"], dtype=np.int32),
        completions=tuple(np.asarray(c, dtype=np.int32) for c in row["completion_ids"]),
        verdict=verdict_of(row["verdict"]),
        row=row["row"],
        id=row["id"],
        truncated=tuple(row["truncated"]),
        meta=row["meta"],
        masks=tuple(  # runs from before there were masks have none: all are targets
            None if mask is None else np.asarray(mask, bool) for mask in row.get("masks", ())
        ),
    )


@dataclass
class Collected:
    """What was sampled and voted so far, over all chunks of the data."""

    keep: Path  # a file for the rollout in use, should a signal come
    prompts: int = 0
    tokens: int = 0
    votes: list[Sequence[Any]] = field(default_factory=list)

    def add(self, tokens: int, votes: Sequence[Sequence[Any]]) -> None:
        """Count another chunk."""
        self.prompts += len(votes)
        self.tokens += tokens
        self.votes += votes

    def record(self, backbone: Backbone) -> dict[str, Any]:
        """What the run record says of it; nothing where nothing was sampled."""
        from alignlab.rewards.agreement import agreement_of

        if not self.prompts:
            return {}
        total, _ = backbone.parameter_counts("policy")
        return {
            "params_total": total,
            "tokens_sampled": self.tokens,
            "flops": 2.0 * total * self.tokens,
            "agreement": agreement_of(self.votes),
        }


def counts_of(groups: Sequence[PromptGroup]) -> dict[str, int]:
    """Sizes of annotated groups, for the run record."""
    pairs = [len(group.verdict.pairs()) for group in groups]
    return {
        "prompts": len(groups),
        "completions": sum(len(group.completions) for group in groups),
        "pairs": sum(pairs),
        "groups_without_pairs": pairs.count(0),
    }


def require_verdicts(groups: Sequence[TokenGroup], annotations: Run, least: int = 1) -> None:
    """Refuse to train on fewer than ``least`` prompts with a verdict of use to the stage.

    Raises:
        DataError: says how many there are and what to change.
    """
    if len(groups) < least:
        raise DataError(
            f"{annotations.name}: {len(groups)} of the annotated prompts for training have a"
            f" verdict that this stage can use, and it needs {least} (a pairwise method needs a"
            " better and a worse completion of one prompt; equal scores are ties). Annotate more"
            " prompts, or use a method that fits the verdicts, such as objective=kto for thumbs."
        )


def require_own_template(annotations: Run, backbone: Backbone) -> None:
    """Refuse annotations whose prompts were written with another chat template than the backbone's.

    Raises:
        ConfigError: names both templates.
    """
    from alignlab.models.templates import require_same_template, template_hash

    record = annotations.record
    if "template" in record:
        mine = template_hash(backbone.tokenizer)
        require_same_template(mine, record["template"], annotations.name)


def verdict_of(values: Mapping[str, Any]) -> Verdict:
    """Verdict from its JSON form, where tuples are lists."""
    from alignlab.data.group import Verdict

    lists = {name: tuple(value) for name, value in values.items() if name != "kind"}
    return Verdict(values["kind"], **lists)
