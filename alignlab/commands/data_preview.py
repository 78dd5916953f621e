"""``alignlab data preview``: the very tokens that a stage would train on, and what each is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alignlab.errors import ConfigError, DataError

if TYPE_CHECKING:
    from alignlab.commands.data_setup import Setup
    from alignlab.data.group import PromptGroup
    from alignlab.data.view import RowView


def preview(
    file: str | None,
    overrides: Sequence[str],
    *,
    rows: int,
    ids: bool,
    html: str | None,
    split: str,
    row: int | None = None,
) -> int:
    """Print rows of a split token by token, or write them as a page.

    Args:
        file: a data file or folder; None = the data of the configuration.
        overrides: as of ``alignlab run``.
        rows: how many rows, from the first of the split or from ``row``.
        ids: with token ids.
        html: where to write a page; None = print.
        split: which split.
        row: number of the first row; None = 0.

    Raises:
        ConfigError: a configuration that cannot be run, a split without tokens to show.
        DataError: data that cannot be read or tokenised, or no row there.
    """
    from alignlab.commands.data_setup import Setup

    if rows < 1:
        raise ConfigError(f"--rows {rows}: show at least one row.")
    if row is not None and row < 0:
        raise ConfigError(f"--row {row}: rows are counted from 0.")
    setup = Setup.of(file, overrides)
    setup.splits([split])  # refuses a name that is none
    views = list(look(setup, split, row or 0, rows))  # refuses before anything is printed
    if html is not None:
        from alignlab.commands.preview_page import page

        text = page(views, title=f"{setup.name}, split {split}", facts=facts(setup, split), ids=ids)
        Path(html).write_text(text, encoding="utf-8")
        print(f"page: {html}")
        return 0
    from alignlab.commands.preview_text import has_colour, legend, row_text

    colour = has_colour(sys.stdout)
    print(f"{setup.name}, split {split}: {facts(setup, split)}\n{legend(colour)}")
    for view in views:
        print(f"\n{row_text(view, ids=ids, colour=colour)}")
    return 0


def look(setup: Setup, split: str, first: int, count: int) -> Iterator[RowView]:
    """View ``count`` rows of a split from row ``first`` on.

    Raises:
        DataError: there are no rows there.
    """
    from alignlab.data.view import Viewer

    chosen = list(islice(_rows(setup, split), first, first + count))
    if not chosen:
        raise DataError(_nothing(setup, split, first))
    viewer = Viewer(setup.tokenization(documents=setup.reading(split) is not None))
    return (viewer.view(group, number) for number, group in enumerate(chosen, first))


def facts(setup: Setup, split: str) -> str:
    """What decides the tokens beside the data."""
    template = setup.backbone.template
    if stage := setup.reading(split):
        return (
            f"backbone {setup.backbone.path}, whole documents, of which training cuts windows of "
            f"{stage.window} tokens"
        )
    return (
        f"backbone {setup.backbone.path}, max_prompt {setup.lengths.max_prompt}, max_completion "
        f"{setup.lengths.max_completion}" + (f", template {template}" if template else "")
    )


def _rows(setup: Setup, split: str) -> Iterator[PromptGroup]:
    """Groups of a split as its stage takes them."""
    if split.startswith("pretrain") and setup.reading(split) is None:
        raise ConfigError(
            f"--split {split}: pretraining makes its own vocabulary of the texts, so there are no "
            "tokens before it. Look at another split, or at the texts themselves; with "
            "pipeline=continued_pretrain the backbone's tokenizer reads them."
        )
    groups = setup.source(split).stream(split)
    if split != "sft":
        return groups
    from alignlab.stages.sft import demonstrations

    return (best for group in groups for best in demonstrations([group]))


def _nothing(setup: Setup, split: str, first: int) -> str:
    count = sum(1 for _ in _rows(setup, split))
    if count:
        return f"--row {first}: split '{split}' of {setup.name} has {count} rows, counted from 0."
    prompts = sum(1 for _ in setup.source(split).stream(split))
    if prompts:
        return (
            f"{setup.name}: the {prompts} rows of split '{split}' are prompts without completions, "
            "and there is nothing to imitate. Look at --split preference."
        )
    return f"{setup.name}: split '{split}' has no rows. Name another one with --split."
