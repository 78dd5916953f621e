"""The connection to Ray: a cluster that exists, or one that lives as long as the command."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alignlab
from alignlab.errors import ConfigError
from alignlab.launch.resources import Resources
from alignlab.launch.task import usable_cores

ROOT = Path(alignlab.__file__).resolve().parents[1]
REACH_SECONDS = 10.0
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
STARTING = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a stage without GPUs sees none
}


def require() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed.
    """
    for name, value in STARTING.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError(
            "launch=ray needs the package 'ray', which is not installed: "
            "pip install 'alignlab[ray]'."
        ) from None
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Connect to the cluster at ``address``, or start Ray on this machine, for the time inside.

    Raises:
        ConfigError: there is no cluster, or another one is in use.
    """
    ray = require()
    if address is not None:
        _require_listening(address)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    options: dict[str, Any] = {
        "log_to_driver": False,  # every stage has its log
        "logging_level": "warning",
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},
    }
    if address is None:
        # "local" starts one even where RAY_ADDRESS names another.
        options |= {"num_cpus": usable_cores(), "include_dashboard": False}
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "start Ray on this machine" if address is None else f"reach Ray at '{address}'"
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"launch.address: cannot {where}: {reason} (`ray status` shows a cluster; null starts "
            "one here)."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():  # Ray has set its own
                signal.signal(number, handler)


def _require_listening(address: str) -> None:
    """Refuse an address where nobody listens: Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (host and colon and port.isdigit()):
        raise ConfigError(
            f"launch.address={address!r}: expected auto, HOST:PORT or ray://HOST:PORT, or null for "
            "a Ray that is started here."
        )
    try:
        with socket.create_connection((host, int(port)), timeout=REACH_SECONDS):
            return
    except OSError as error:
        raise ConfigError(f"launch.address: cannot reach Ray at '{address}': {error}.") from None


def demand(resources: Resources) -> dict[str, float]:
    """What one machine has to give to a stage, in Ray's words.

    A process without a stated number of CPUs counts as one.
    """
    found: dict[str, float] = {"CPU": float(resources.ranks * (resources.cpus or 1))}
    if resources.gpus:
        found["GPU"] = float(resources.gpus)
    if resources.memory is not None:
        found["memory"] = float(size_of(resources.memory))
    return found


def size_of(memory: str) -> int:
    """Bytes of ``64G``; without a letter, megabytes, as for Slurm."""
    unit = memory[-1] if memory[-1] in UNITS else "M"
    return int(memory.removesuffix(unit)) * UNITS[unit]


def require_room(wanted: Mapping[str, Resources], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse stages that no machines of a cluster have room for: Ray would wait for ever.

    ``wanted`` has what each stage asks for; ``nodes`` what each machine has in all.

    Raises:
        ConfigError: naming the first such stage, and what there is.
    """
    for stage, resources in wanted.items():
        needs = demand(resources)
        fitting = [node for node in nodes if all(node.get(k, 0.0) >= v for k, v in needs.items())]
        if len(fitting) >= resources.nodes:
            continue
        asked = ", ".join(f"{_shown(key, value)}" for key, value in needs.items())
        largest = {key: max((n.get(key, 0.0) for n in nodes), default=0.0) for key in needs}
        there = ", ".join(_shown(key, value) for key, value in largest.items())
        raise ConfigError(
            f"launch: '{stage}' asks for {asked} on {resources.nodes} "
            f"machine{'s'[: resources.nodes != 1]}, and {len(fitting)} of {len(nodes)} in the "
            f"cluster have so much (at most: {there}). Ask for less, or set launch.elastic=true if "
            "the cluster adds machines when they are asked for."
        )


def _shown(key: str, value: float) -> str:
    return f"{value / UNITS['G']:.3g}G memory" if key == "memory" else f"{value:g} {key}"
