"""Plant a bug in a live module, and see a test fail.

A test that has never failed proves little. `catches` runs a test twice: on the code as it is, where
it must pass, and with one line of that code replaced, where it must fail. The bug lives in a copy
of the source; only the code objects of the functions are exchanged while the test runs.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and all that is nested in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_objects(constant)


def functions_of(module: types.ModuleType) -> Iterator[types.FunctionType]:
    """Every function and method that the module defines, under whatever wrapper it stands."""
    for value in vars(module).values():
        if inspect.isclass(value) and value.__module__ == module.__name__:
            for member in vars(value).values():
                yield from _inside(member, module)
        else:
            yield from _inside(value, module)


def _inside(value: Any, module: types.ModuleType) -> Iterator[types.FunctionType]:
    if isinstance(value, property):
        value = value.fget
    value = getattr(value, "__func__", value)
    value = inspect.unwrap(value) if callable(value) else value
    if isinstance(value, types.FunctionType) and value.__module__ == module.__name__:
        yield value


@contextmanager
def planted(module: str, old: str, new: str) -> Iterator[None]:
    """Within the block, ``module`` behaves as if ``old`` (which it holds once) read ``new``."""
    live = importlib.import_module(module)
    source = inspect.getsource(live)
    assert source.count(old) == 1, f"{module} holds {source.count(old)} times: {old!r}"
    broken = compile(source.replace(old, new), f"<{module} with a planted bug>", "exec")
    codes = {code.co_qualname: code for code in code_objects(broken)}
    kept = [(f, f.__code__) for f in functions_of(live) if codes.get(f.__qualname__) is not None]
    changed = [(f, code) for f, code in kept if codes[f.__qualname__] != code]
    assert changed, f"no function of {module} changes with {new!r}"
    try:
        for function, _ in changed:
            function.__code__ = codes[function.__qualname__]
        forget(live)
        yield
    finally:
        for function, code in changed:
            function.__code__ = code
        forget(live)


def forget(module: types.ModuleType) -> None:
    """Empty the module's caches: a remembered result would hide the bug, or outlive it."""
    for value in vars(module).values():
        if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "cache_clear"):
            value.cache_clear()


def catches(
    module: str, old: str, new: str, *, raises: Any = AssertionError
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The test passes as it stands and fails (with ``raises``) when ``old`` reads ``new``.

    The test runs twice with the same fixtures, so it must not depend on an empty ``tmp_path``.
    """

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def twice(*args: Any, **named: Any) -> None:
            test(*args, **named)
            with planted(module, old, new), pytest.raises(raises):
                test(*args, **named)

        return twice

    return decorate
