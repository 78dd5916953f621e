"""Modules that are imported when they are first used.

A plan looks up every objective, to check its arguments. That must not cost the seconds that
importing torch takes, so the modules of objectives name it like this::

    if TYPE_CHECKING:
        import torch
    else:
        torch = lazy.module("torch")
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module; an attribute is looked up once and kept."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, found)
        return found


def module(name: str) -> ModuleType:
    """Return the module called ``name``, imported at the first use of one of its attributes."""
    return _Later(name)
