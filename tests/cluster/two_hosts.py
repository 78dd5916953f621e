"""Two network namespaces as two hosts: addresses, names and hosts files of their own, one disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Unavailable(Exception):
    """Why this machine cannot play two."""


@dataclass(frozen=True)
class Host:
    """One namespace with a network interface."""

    name: str
    address: str
    interface: str

    def start(self, words: Sequence[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a program on this host; its output goes to ``log``."""
        named = 'hostname "$0" && exec "$@"'  # in a UTS namespace: this host's own name
        command = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", named]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "GLOO_SOCKET_IFNAME": self.interface,
            "TP_SOCKET_IFNAME": self.interface,
            # Else a node that comes back waits in vain for the address of the first process: that
            # is said once, and the processes that stayed do not say it again (torch 2.13).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            **variables,
        }
        with log.open("ab") as out:
            return subprocess.Popen(
                [*command, self.name, *words], env=environment, stdout=out, stderr=out
            )

    def processes(self) -> list[int]:
        """Ids of what runs on this host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        return [int(word) for word in listed.stdout.split()]

    def lose(self) -> None:
        """End everything on this host at once, as a power cut does; its interface stays."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Set up two hosts that reach each other and nothing else; take them down afterwards.

    Raises:
        Unavailable: not root, no ``ip``, or namespaces are not allowed here.
    """
    if os.geteuid() != 0:
        raise Unavailable("network namespaces need root")
    for tool in ("ip", "unshare", "hostname"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no program '{tool}'")
    tag = f"al{os.getpid() % 100_000}"
    hosts = tuple(
        Host(f"{tag}{letter}", f"10.77.0.{i}", f"{tag}v{letter}")
        for i, letter in enumerate("ab", start=1)
    )
    first, second = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            folder = Path("/etc/netns") / host.name
            folder.mkdir(parents=True, exist_ok=True)
            # The machine's own hosts file may call it 127.0.0.1, and nobody would meet there.
            lines = ["127.0.0.1 localhost", *(f"{each.address} {each.name}" for each in hosts)]
            (folder / "hosts").write_text("\n".join(lines) + "\n")
        _ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        for host in hosts:
            _ip("link", "set", host.interface, "netns", host.name)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "link", "set", host.interface, "up")
        yield first, second
    finally:
        for host in hosts:
            host.lose()
            time.sleep(0.1)
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / host.name, ignore_errors=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")


def torchrun(host: Host, first: Host, port: int, restarts: int = 0) -> list[str]:
    """Words that start the agent of one of two nodes, before those of its program."""
    return [
        sys.executable, "-m", "torch.distributed.run",
        "--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", str(restarts),
        "--rdzv_backend", "c10d", "--rdzv_endpoint", f"{first.address}:{port}", "--rdzv_id", "al",
        "--local_addr", host.address,
    ]  # fmt: skip
