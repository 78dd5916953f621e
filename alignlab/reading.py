"""One reading of configuration files for the many jobs of a sweep."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

_COPY = re.compile(r"\$\{[\w.]+\}|\$\{oc\.env:[^${}]*\}")  # an interpolation that only copies
Path = tuple[Any, ...]  # keys and indices from the top of a configuration to a value


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain containers, every interpolation resolved.

    Raises:
        ConfigError: an interpolation that leads nowhere, or a value that is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "the configuration"
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {reason}.") from None
    if not isinstance(plain, dict):
        raise ConfigError("config.yaml must hold a mapping at the top.")
    return {str(key): value for key, value in plain.items()}


def copied_from(config: DictConfig, key: str) -> str | None:
    """Key whose value ``key`` is a copy of, because an interpolation above it copies a mapping."""
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(config, resolve=False)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if isinstance(node, str) and _COPY.fullmatch(node):
            return ".".join([node[2:-1], *parts[depth:]])
        if not isinstance(node, dict):
            return None
        node = node.get(part)
    return None


class Reading:
    """The files that jobs choose, composed once; each job then only puts its values in place.

    Composing and resolving with OmegaConf takes a tenth of a second, and sweeps have thousands of
    jobs. Where a value goes is found once per key: it is set to a mark, everything is resolved, and
    the mark is looked for. That is exact because interpolations of ``conf/`` only copy
    (``${seed}``); where one does more, or a value is no scalar, ``with_values`` gives None.
    """

    MARK = "\0mark"

    def __init__(self, config: DictConfig) -> None:
        from omegaconf import OmegaConf

        self._config = config
        self._plain = plain(config)
        texts = _leaves(OmegaConf.to_container(self._config, resolve=False))
        self._copies = all(_COPY.fullmatch(t) for _, t in texts if isinstance(t, str) and "${" in t)
        self._before = dict(_leaves(self._plain))
        self._places: dict[str, list[Path] | None] = {}

    def with_values(self, values: Sequence[tuple[str, Any]]) -> dict[str, Any] | None:
        """Return the configuration with ``values`` set, or None where that needs a composition."""
        found = self._plain
        for key, value in values:
            scalar = value is None or type(value) in (bool, int, float, str)
            if not self._copies or not scalar or (isinstance(value, str) and "${" in value):
                return None
            if key not in self._places:
                self._places[key] = self._look(key)
            places = self._places[key]
            if places is None:
                return None
            for place in places:
                found = _replaced(found, place, value)
        return found

    def _look(self, key: str) -> list[Path] | None:
        """Paths that the value of ``key`` is copied to; None where that cannot be told."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        marked = copy.deepcopy(self._config)
        try:
            OmegaConf.update(marked, key, self.MARK, merge=True)
            after = dict(_leaves(OmegaConf.to_container(marked, resolve=True)))
        except OmegaConfBaseException:
            return None  # composing the whole job says what is wrong
        if set(after) != set(self._before):
            return None  # a mapping or a list gave way to the mark
        changed = [path for path, value in after.items() if value != self._before[path]]
        return changed if all(after[path] == self.MARK for path in changed) else None


def _leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value below ``node`` that is no container, and every empty container, with its path."""
    members = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in members:
        if isinstance(value, (dict, list)) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _replaced(node: Any, path: Path, value: Any) -> Any:
    """Return a copy of ``node`` with ``value`` at ``path``; all beside the path is shared."""
    if not path:
        return value
    found = node.copy()
    found[path[0]] = _replaced(node[path[0]], path[1:], value)
    return found
