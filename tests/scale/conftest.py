"""The laboratories of the stages, for tests of several processes."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest puts a folder on the path only when it collects there; these tests also run alone.
TESTS = Path(__file__).resolve().parent.parent
for folder in map(str, (TESTS / "vision", TESTS / "stages")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

from stage_fixtures import chain, lora_chain  # noqa: E402

__all__ = ["chain", "lora_chain"]
