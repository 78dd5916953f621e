"""The checks reuse the cases of other folders' tests; those are importable from here too."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
for folder in ("objectives", "models", "data", "rollout", "rewards"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))
