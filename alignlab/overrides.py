"""Overrides of the command line as Hydra reads them, and the values that a swept one stands for.

Needs Hydra's composition to be initialised around it (`compose` does that): ``glob`` asks for the
options of a group.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignlab.errors import ConfigError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

HELP_SYNTAX = "An override is key=value, +key=value to add a key, or ~key to remove one."
SWEEPER = ("hydra/sweeper", "hydra.sweeper")
_INSTEAD = {
    "hydra/launcher": "stages are launched by launch=local, launch=slurm or launch=ray",
    "hydra.launcher": "stages are launched by launch=local, launch=slurm or launch=ray",
    "hydra.run": "runs are in the store: store=FOLDER",
    "hydra.sweep": "runs are in the store: store=FOLDER",
    "hydra.mode": "-m asks for a sweep",
}


@dataclass(frozen=True)
class Sweep:
    """What a command asks to be run: overrides, and what chooses from those that are swept."""

    overrides: tuple[Override, ...]  # without those of the sweeper; its ``params`` come first
    sweeper: Mapping[str, Any] | None = None  # its configuration; None = every combination


def parse(overrides: Sequence[str]) -> list[Override]:
    """Read overrides one by one with Hydra's own parser.

    Raises:
        ConfigError: one that Hydra cannot read.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    parsed = []
    for override in overrides:
        try:
            parsed.extend(parser.parse_overrides([override]))  # sets the loader, for glob
        except OverrideParseException as error:
            raise unparsable(error) from None
        except (HydraException, OmegaConfBaseException) as error:
            reason = " ".join(str(error).splitlines()[:1])
            raise ConfigError(
                f"cannot read the override '{override}': {reason}. {HELP_SYNTAX}"
            ) from None
    return parsed


def unparsable(error: Any) -> ConfigError:
    """Say in one line what Hydra's parser did not understand."""
    said = [line.strip() for line in str(error.message).splitlines()]
    # Hydra opens with "Error parsing override …" and ends with a link; the reason is between.
    reason = next((line for line in said if not line.startswith(("Error parsing", "See"))), said[0])
    return ConfigError(f"cannot read the override '{error.override}': {reason}. {HELP_SYNTAX}")


def is_of_hydra(override: str) -> bool:
    """Whether an override is of Hydra's own configuration."""
    return key_of(override).startswith(("hydra.", "hydra/"))


def is_of_sweeper(override: str) -> bool:
    """Whether an override chooses or changes what chooses the jobs of a sweep."""
    head = key_of(override)
    return head in SWEEPER or head.startswith(tuple(s + e for s in SWEEPER for e in "./"))


def require_ours(overrides: Sequence[str]) -> None:
    """Refuse what would change Hydra itself, of which only the sweeper is read.

    Raises:
        ConfigError: such an override, with what to write instead.
    """
    for override in overrides:
        if is_of_hydra(override) and not is_of_sweeper(override):
            key = key_of(override)
            near = next((v for k, v in _INSTEAD.items() if key.startswith(k)), None)
            raise ConfigError(
                f"{key}: nothing here reads this part of Hydra's configuration"
                + (f"; {near}." if near else ".")
            )


def key_of(override: str) -> str:
    """Key of an override, without the sign before it."""
    return override.partition("=")[0].lstrip("+~")


def sets_a_value(parsed: Override, groups: set[str]) -> bool:
    """Whether an override sets a value, and neither chooses files nor adds or removes a key."""
    changes = not (parsed.is_add() or parsed.is_force_add() or parsed.is_delete())
    return changes and parsed.package is None and parsed.key_or_group not in groups


def product(overrides: Sequence[Override]) -> list[list[str]]:
    """Overrides of every job: all combinations of what is swept, the first one slowest.

    As in Hydra's basic sweeper a key that is given twice has the later value, at the place of the
    earlier one.

    Raises:
        ConfigError: an interval, which has no list of values, or a sweep over nothing.
    """
    axes = {override.get_key_element(): spelled_out(override) for override in overrides}
    return [list(job) for job in itertools.product(*axes.values())]


def spelled_out(override: Override) -> list[str]:
    """Every override that a swept one stands for; one that is not swept is itself.

    Raises:
        ConfigError: as :func:`product`.
    """
    key = override.get_key_element()
    line = override.input_line or key
    if not override.is_sweep_override():
        if override.value_type is None:  # ~key
            return [line]
        # Written anew, not as it stands: the order of `shuffle([1,2,3])` is one for all jobs.
        return [f"{key}={override.get_value_element_as_str()}"]
    if not override.is_discrete_sweep():
        raise ConfigError(
            f"'{line}': an interval has no list of values. Give range(…) or choice(…), or let "
            "hydra/sweeper=optuna choose from it."
        )
    try:
        found = [f"{key}={value}" for value in override.sweep_string_iterator()]
    except ValueError as error:  # range(1,5,0), and of OmegaConf: range(1,3),5
        raise ConfigError(f"'{line}': {str(error).splitlines()[0]}.") from None
    if not found:
        raise ConfigError(f"'{line}' matches nothing, so there is nothing to run.")
    return found


def require_single(overrides: Sequence[Override]) -> None:
    """Refuse what asks for a sweep in a command without ``-m``.

    Raises:
        ConfigError: a swept override, or one of a sweeper.
    """
    for override in overrides:
        line = override.input_line or ""
        if is_of_sweeper(line):
            raise ConfigError(f"'{line}' is about a sweep, which needs -m.")
        if override.is_sweep_override():
            raise ConfigError(
                f"'{line}' sweeps over several values, which needs -m. For a list, write "
                f"{override.key_or_group}=[…]; for a text with commas, quote it."
            )


def dotted(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and values of ``hydra.sweeper.params``, whether the keys are dotted or nested."""
    found: dict[str, Any] = {}
    for key, value in stated.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": leaf for inner, leaf in dotted(value).items()}
        else:
            found[str(key)] = value
    return found


def completed(stated: Sequence[str]) -> list[str]:
    """Return overrides with what they leave unsaid, the conveniences of the door.

    ``data.path=pairs.jsonl`` alone means the data group ``file``, the only one whose path is a
    user's file; and ``store.upstream`` is spelled as if it were below the path that ``store`` is.
    """
    overrides = [re.sub(r"^(\+*)store\.upstream=", r"\1store_upstream=", one) for one in stated]
    sets_path = any(o.lstrip("+").startswith("data.path=") for o in overrides)
    selects = any(o.startswith(("data=", "+data=")) for o in overrides)
    return ["data=file", *overrides] if sets_path and not selects else overrides
