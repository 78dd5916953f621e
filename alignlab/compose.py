"""From command-line overrides to one plain mapping: Hydra composes, and nothing else of it is used.

No OmegaConf object leaves this module, and neither Hydra nor OmegaConf is imported before the first
composition. Every refusal is a :class:`ConfigError` with the full path of the key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError, did_you_mean
from alignlab.overrides import (
    Sweep,
    completed,
    dotted,
    is_of_hydra,
    is_of_sweeper,
    key_of,
    parse,
    product,
    require_ours,
    require_single,
    sets_a_value,
    spelled_out,
    unparsable,
)
from alignlab.reading import Reading, copied_from, plain

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

ROOT_CONFIG = "config"
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


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
    for job in jobs:
        require_ours(job)
    with _hydra():
        if len(jobs) == 1:
            return [_compose_one(completed(jobs[0]))]
        sweep = _Sweep(_groups())
        return [sweep.compose(completed(job)) for job in jobs]


def expand(overrides: Sequence[str], multirun: bool) -> list[list[str]]:
    """List the overrides of every job: the product of all swept ones, the first one slowest.

    Without ``multirun`` there is one job, and a swept override (``a,b``, ``range(3)``,
    ``choice(…)``, ``glob(*)``) is refused.

    Raises:
        ConfigError: an override that does not parse, a sweep without ``-m``, or a sweeper that
            chooses by results, so that nobody can list its jobs.
    """
    if not multirun:
        with _hydra():
            require_single(parse(overrides))
        return [list(overrides)]
    found = sweep(overrides)
    if found.sweeper is not None:
        raise ConfigError("hydra/sweeper: this command has to know all jobs before the first one.")
    with _hydra():
        return product(found.overrides)


def sweep(overrides: Sequence[str]) -> Sweep:
    """Read the overrides of a command with ``-m`` and the configuration of its sweeper.

    Raises:
        ConfigError: an override that does not parse, or that is Hydra's own but not its sweeper's.
    """
    require_ours(overrides)
    with _hydra():
        parsed = parse(overrides)
        settings = _sweeper(parsed)
        params = [f"{k}={v}" for k, v in dotted(settings.pop("params", None) or {}).items()]
        stated = parse(params) + [o for o in parsed if not is_of_hydra(o.input_line or "")]
    if settings.get("_target_") != BASIC:
        return Sweep(tuple(stated), settings)
    if settings.get("max_batch_size") is not None:
        raise ConfigError(
            "hydra.sweeper.max_batch_size: all jobs are planned together, so that what they share "
            "is trained once; launch.jobs says how many stages run at a time."
        )
    return Sweep(tuple(stated))


def _sweeper(parsed: Sequence[Override]) -> dict[str, Any]:
    """Compose Hydra's own configuration and return that of its sweeper, as plain data."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in parsed:
        if is_of_sweeper(override.input_line or "") and override.is_sweep_override():
            raise ConfigError(f"'{override.input_line}': a sweep cannot be over its own sweeper.")
    # Beside it the first job is composed: files that it chooses may state a sweeper.
    lines = completed([spelled_out(o)[0] for o in parsed if not o.is_interval_sweep()])
    try:
        config = hydra.compose(ROOT_CONFIG, overrides=lines, return_hydra_config=True)
        found = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _explained_sweeper(error, lines) from None
    except (AssertionError, AttributeError):  # what Hydra makes of basic's params on the line
        raise ConfigError(
            "hydra.sweeper.params: give KEY=VALUES itself, or state it in an experiment's file."
        ) from None
    return {str(key): value for key, value in dict(found).items()}  # type: ignore[arg-type]


def _explained_sweeper(error: Exception, lines: Sequence[str]) -> ConfigError:
    culprit = _culprit(lines, str(error))
    if culprit is None or not is_of_sweeper(culprit):
        return _explained(error, lines)
    key = key_of(culprit)
    try:
        known = _sweeper(parse([o for o in lines if o != culprit]))
    except ConfigError as other:  # a second mistake: name that one first
        return other
    return ConfigError(
        f"{key}: unknown key (from '{culprit}').{did_you_mean(key.split('.')[-1], known)} Known "
        f"here: {', '.join(sorted(k for k in known if k != '_target_'))}."
    )


@contextmanager
def _hydra() -> Iterator[None]:
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        yield


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
            [parsed] = parse([override])
            sets = sets_a_value(parsed, self._groups)
            found = (str(parsed.key_or_group), parsed.value()) if sets else None
            self._values[override] = found
        return self._values[override]


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


def _explained(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Turn what Hydra raised into one message with the key's full path and a suggestion."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return unparsable(error)
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
        key = key_of(override)
        if f"'{key}'" in first or f"'{override}'" in first:
            return override
    return None


def _unknown_key(culprit: str, overrides: Sequence[str]) -> ConfigError:
    key = key_of(culprit)
    try:
        rest = [o for o in overrides if o != culprit and not is_of_hydra(o)]
        known = _compose_one(rest)
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
    origin = copied_from(_load(rest), key)
    why = f" What it is in is a copy: set {origin}." if origin else ""
    return ConfigError(f"{key}: the override '{culprit}' cannot be applied.{why}")


def _top(override: str) -> str:
    return key_of(override).split(".")[0]


def _groups() -> set[str]:
    return {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}
