"""From command-line overrides to one plain mapping: Hydra composes, and nothing else of it is used.

No OmegaConf object leaves this module, and neither Hydra nor OmegaConf is imported before the first
composition. Every refusal is a :class:`ConfigError` with the full path of the key.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError, did_you_mean
from alignlab.reading import Reading, plain

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

ROOT_CONFIG = "config"
HELP_SYNTAX = "An override is key=value, +key=value to add a key, or ~key to remove one."


def conf_dir() -> Path:
    """Find the configuration: ``conf/`` of the checkout, else ``alignlab/conf`` of the wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / f"{ROOT_CONFIG}.yaml").is_file():
            return folder
    raise ConfigError(
        f"no configuration found: neither {package.parent / 'conf'} nor {package / 'conf'} has a "
        f"{ROOT_CONFIG}.yaml. Install alignlab again, or run it from a full checkout."
    )


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose one job's configuration, with every interpolation resolved.

    Raises:
        ConfigError: an override that does not parse, an unknown group option or an unknown key.
    """
    return compose_all([overrides])[0]


def compose_all(jobs: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Compose the configurations of many jobs; jobs that choose the same files share the reading.

    Raises:
        ConfigError: as :func:`compose`.
    """
    with _hydra():
        if len(jobs) == 1:
            return [_compose_one(_with_data_file(jobs[0]))]
        sweep = _Sweep(_groups())
        return [sweep.compose(_with_data_file(job)) for job in jobs]


def expand(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """List the overrides of every job: the product of all swept ones, the first one slowest.

    Without ``multirun`` there is one job, and a swept override (``a,b``, ``range(3)``,
    ``choice(…)``, ``glob(*)``) is refused.

    Raises:
        ConfigError: an override that does not parse, or a sweep without ``-m``.
    """
    with _hydra():
        axes = [_values(parsed, multirun) for parsed in _parse(overrides)]
    return [list(job) for job in itertools.product(*axes)]


@contextmanager
def _hydra() -> Iterator[None]:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


def _with_data_file(overrides: Sequence[str]) -> list[str]:
    # The one convenience of the door: `data.path=pairs.jsonl` alone means the data group `file`,
    # the only one whose `path` is a file of the user's.
    sets_path = any(o.lstrip("+").startswith("data.path=") for o in overrides)
    selects = any(o.startswith(("data=", "+data=")) for o in overrides)
    return ["data=file", *overrides] if sets_path and not selects else list(overrides)


def _compose_one(overrides: Sequence[str]) -> dict[str, Any]:
    named = plain(_load(overrides))
    _check_added(named, overrides)
    return named


class _Sweep:
    """Composes many jobs; the files that several of them choose are read once."""

    def __init__(self, groups: set[str]) -> None:
        self._groups = groups
        self._readings: dict[tuple[str, ...], Reading] = {}
        self._values: dict[str, tuple[str, Any] | None] = {}

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose one job."""
        values = {o: v for o in overrides if (v := self._value(o)) is not None}
        rest = tuple(o for o in overrides if o not in values)
        if any(o.startswith(("+", "~")) for o in rest):
            return _compose_one(overrides)  # here the order of all overrides can matter
        if rest not in self._readings:
            self._readings[rest] = Reading(_load(rest))
        found = self._readings[rest].with_values(list(values.values()))
        return _compose_one(overrides) if found is None else found

    def _value(self, override: str) -> tuple[str, Any] | None:
        """Key and value of an override that sets a value, None for one that chooses files."""
        if override not in self._values:
            [parsed] = _parse([override])
            sets = _sets_a_value(parsed, self._groups)
            found = (str(parsed.key_or_group), parsed.value()) if sets else None
            self._values[override] = found
        return self._values[override]


def _sets_a_value(parsed: Override, groups: set[str]) -> bool:
    changes = not (parsed.is_add() or parsed.is_force_add() or parsed.is_delete())
    return changes and parsed.package is None and parsed.key_or_group not in groups


def _load(overrides: Sequence[str]) -> DictConfig:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return hydra.compose(ROOT_CONFIG, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explained(error, overrides) from None


def _check_added(named: Mapping[str, Any], overrides: Sequence[str]) -> None:
    # `+key=` may add any key. Below the top the typed stages refuse what they do not know, but
    # nothing reads an unknown key at the top: it would be accepted and change nothing.
    known = {*_groups(), "stages"}
    tops = {_top(o): o for o in overrides if o.startswith("+") and _top(o) in named}
    if not set(tops) - known:
        return
    known |= set(plain(_load([o for o in overrides if _top(o) not in tops])))
    for key, culprit in tops.items():
        if key not in known:
            raise ConfigError(
                f"{key}: unknown key (from '{culprit}'); nothing would read it."
                f"{did_you_mean(key, known)} Known here: {', '.join(sorted(known))}."
            )


def _parse(overrides: Sequence[str]) -> list[Override]:
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for override in overrides:
        try:
            parsed.extend(parser.parse_overrides([override]))  # sets the loader, for glob
        except OverrideParseException as error:
            raise _unparsable(error) from None
    return parsed


def _values(override: Override, multirun: bool) -> list[str]:
    line = override.input_line or ""
    if not override.is_sweep_override():
        return [line]
    if not multirun:
        raise ConfigError(
            f"'{line}' sweeps over several values, which needs -m. For a list, write "
            f"{override.key_or_group}=[…]; for a text with commas, quote it."
        )
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"'{line}': an interval has no list of values; use range(…) or choice(…)."
        )
    key = override.get_key_element()
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"'{line}' matches nothing, so there is nothing to run.")
    return values


def _unparsable(error: Any) -> ConfigError:
    said = [line.strip() for line in str(error.message).splitlines()]
    # Hydra opens with "Error parsing override …" and ends with a link; the reason is between.
    reason = next((line for line in said if not line.startswith(("Error parsing", "See"))), said[0])
    return ConfigError(f"cannot read the override '{error.override}': {reason}. {HELP_SYNTAX}")


def _explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Turn what Hydra raised into one message with the key's full path and a suggestion."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return _unparsable(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _unknown_option(error.missing_cfg_file, list(error.options or []))
    culprit = _culprit(overrides, str(error))
    if culprit is not None:
        return _unknown_key(culprit, overrides)
    return ConfigError(" ".join(str(error).split()) + ".")


def _unknown_option(missing: str, options: list[str]) -> ConfigError:
    group, _, option = missing.rpartition("/")
    if not options:
        return ConfigError(f"{missing}: there is no such configuration in {conf_dir()}.")
    known = ", ".join(sorted(options))
    hint = did_you_mean(option, options)
    return ConfigError(
        f"{group}={option}: there is no {group} named '{option}' (known: {known}).{hint}"
    )


def _culprit(overrides: Sequence[str], message: str) -> str | None:
    """Find the override whose key Hydra did not know, from its message."""
    first = message.splitlines()[0]
    for override in reversed(overrides):
        key = _key(override)
        if f"'{key}'" in first or f"'{override}'" in first:
            return override
    return None


def _unknown_key(culprit: str, overrides: Sequence[str]) -> ConfigError:
    key = _key(culprit)
    try:
        known = _compose_one([o for o in overrides if o != culprit])
    except ConfigError as other:  # a second mistake: name that one first
        return other
    node: Any = known
    parts = key.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[: depth + 1])
        if not isinstance(node, Mapping):
            parent = ".".join(parts[:depth])
            return ConfigError(f"{key}: '{parent}' is the value {node!r}, it has no keys.")
        if part not in node:
            candidates = {str(k) for k in node} | (_groups() if depth == 0 else set())
            listed = ", ".join(sorted(candidates)) or "none"
            return ConfigError(
                f"{path}: unknown key (from '{culprit}').{did_you_mean(part, candidates)} "
                f"Known here: {listed}."
            )
        node = node[part]
    return ConfigError(f"{key}: the override '{culprit}' cannot be applied.")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _top(override: str) -> str:
    return _key(override).split(".")[0]


def _groups() -> set[str]:
    return {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
