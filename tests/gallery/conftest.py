"""The gallery borrows the laboratories of the rooms whose silent bugs it shows."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest puts a folder on the path only when it collects there; the gallery also runs alone.
for room in ("stages", "models", "data"):
    folder = str(Path(__file__).resolve().parent.parent / room)
    if folder not in sys.path:
        sys.path.insert(0, folder)

from small_tokenizers import (  # noqa: E402
    chatml_tokenizer,
    gemma_tokenizer,
    llama3_tokenizer,
    plain_tokenizer,
    tokenizer_factory,
)
from stage_fixtures import caught, chain, earlier, lora_chain  # noqa: E402

__all__ = [
    "caught",
    "chain",
    "chatml_tokenizer",
    "earlier",
    "gemma_tokenizer",
    "llama3_tokenizer",
    "lora_chain",
    "plain_tokenizer",
    "tokenizer_factory",
]
