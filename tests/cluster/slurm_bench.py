"""A real Slurm cluster of two nodes on one machine, brought up and torn down within seconds.

Controller, accounting (slurmdbd over a MariaDB of its own), munge and a slurmd for every virtual
node run from one folder, on free ports and private sockets, so several benches can stand side by
side. Every daemon stays in the foreground as a child of this process and dies with it.

::

    python tests/cluster/slurm_bench.py up FOLDER     # stays until Ctrl-C; then
    export SLURM_CONF=FOLDER/slurm.conf               # sbatch, squeue, sacct … in another terminal

What each odd setting is for stands beside it; all were found by doing without. Slurm 22.05 (Debian
12) is what this was tried with.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
}  # program → Debian package
TOOLS = ("unshare", "mount", "setpriv")
MARK = "ALIGNLAB_BENCH"  # in the environment of every process of a bench: its folder
NODE = "ALIGNLAB_BENCH_NODE"  # in that of a node's daemon and of the steps that it starts
NODES = ("n1", "n2")
GRACE_SECONDS = 20  # between the warning of a preempted job and its end


class Unavailable(Exception):
    """This machine cannot have a bench; says why."""


def require(install: bool) -> None:
    """Make sure that all programs are here; ``install`` fetches missing Debian packages.

    Raises:
        Unavailable: what is missing, and what to do.
    """
    if sys.platform != "linux":
        raise Unavailable("Slurm runs on Linux only")
    if os.geteuid() != 0:
        raise Unavailable("starting Slurm's daemons needs root")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise Unavailable(f"{', '.join(missing)} not found (Debian's util-linux and mount)")
    path = os.environ.get("PATH", "")
    if "/usr/sbin" not in path.split(":"):
        os.environ["PATH"] = f"{path}:/usr/sbin:/sbin"  # where Debian keeps daemons
    lacking = [package for program, package in PACKAGES.items() if shutil.which(program) is None]
    if lacking:
        if not install:
            raise Unavailable(
                f"not installed: apt-get install {' '.join(lacking)} (ALIGNLAB_TEST_INSTALL=1 does)"
            )
        _install(lacking)
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        raise Unavailable("no mount namespaces here (a container without CAP_SYS_ADMIN)")


def _install(packages: Sequence[str]) -> None:
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{', '.join(packages)} not installed, and there is no apt-get")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-qq", *command], env=quiet, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise Unavailable(f"apt-get {command[0]} failed: {' '.join(last)}")


class Bench:
    """The cluster in one folder."""

    def __init__(self, folder: Path, *, cpus: int = 8) -> None:
        self.folder, self.cpus = folder.resolve(), cpus
        self.conf = self.folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = free_ports(2 + len(NODES))
        # The paths of sockets are short; a folder of pytest's need not be.
        self.sockets = Path(f"/tmp/alignlab-slurm-{os.getpid()}-{self.ports[0]}")

    @property
    def environment(self) -> dict[str, str]:
        """What a client of this cluster has in its environment."""
        foreign = ("SLURM", "SBATCH", "SRUN", "SQUEUE", "SACCT")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
        return {**kept, "SLURM_CONF": str(self.conf), MARK: str(self.folder)}

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a client program such as squeue."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}\n{self.last_words()}")
        return done.stdout.strip()

    def last_words(self) -> str:
        """The ends of the daemons' logs."""
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"== {log.name}\n{_tail(log)}" for log in logs)

    # Up

    def up(self) -> None:
        """Start everything and wait until the nodes are idle."""
        for name in ("log", "state", "dev", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.sockets.mkdir(mode=0o711)
        (self.folder / "munge.key").write_bytes(random.randbytes(1024))
        (self.folder / "munge.key").chmod(0o600)
        # Jobs of several nodes meet under the names of their nodes; nobody else needs to know them.
        (self.folder / "hosts").write_text(
            f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {' '.join(NODES)}\n"
        )
        self._write_configuration()
        self._munge()
        self._accounting()
        self._start("slurmctld", "slurmctld", "-D")
        self._until(lambda: "is UP" in self.run("scontrol", "ping", check=False), "slurmctld")
        for node in NODES:
            self.start_node(node)
        self._until(lambda: self._idle() == len(NODES), "its nodes")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node, where the names of all nodes are known."""
        script = f'mount --bind {self.folder}/hosts /etc/hosts && exec slurmd -D -N "{node}"'
        self._start(f"slurmd.{node}", "unshare", "--mount", "sh", "-c", script, **{NODE: node})

    def _idle(self) -> int:
        return self.run("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N").count("n")

    def _munge(self) -> None:
        folder = self.folder
        self._start(
            "munged", "munged", "--foreground", "--force", f"--key-file={folder}/munge.key",
            f"--socket={self.sockets}/munge", f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/log/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self._until(lambda: (self.sockets / "munge").is_socket(), "munged")

    def _accounting(self) -> None:
        data, socket_file = self.folder / "mysql", self.sockets / "mysql"
        with (self.folder / "log" / "mariadb-install.log").open("wb") as log:
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
                 "--auth-root-authentication-method=normal", "--skip-test-db"],
                check=True, stdout=log, stderr=log,
            )  # fmt: skip
        self._start(
            "mariadbd", "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
            f"--socket={socket_file}", f"--pid-file={self.folder}/mysql.pid", "--skip-networking",
            "--skip-log-bin", "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=64M",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
            "--performance-schema=OFF",
        )  # fmt: skip
        ping = ["mariadb-admin", "--no-defaults", "-S", str(socket_file), "ping"]
        self._until(lambda: not subprocess.run(ping, capture_output=True).returncode, "mariadbd")
        self._start("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=str(socket_file))
        self._until(lambda: self._knows_clusters(), "slurmdbd")
        if "bench" not in self.run("sacctmgr", "-n", "show", "cluster", "format=cluster"):
            self.run("sacctmgr", "-i", "add", "cluster", "bench")

    def _knows_clusters(self) -> bool:
        command = ["sacctmgr", "-n", "show", "cluster"]
        return not subprocess.run(command, env=self.environment, capture_output=True).returncode

    def _start(self, name: str, *command: str, **variables: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as log:
            # Should this process be killed, its cluster goes too.
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _until(self, there: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            ended = [name for name, daemon in self.daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                why = f"{', '.join(ended)} ended" if ended else f"not there after {seconds:.0f} s"
                raise RuntimeError(f"the bench waits for {what}: {why}\n{self.last_words()}")
            time.sleep(0.05)

    # Down

    def down(self) -> None:
        """End everything that belongs to this bench, whatever state it is in."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].poll() is None:
            subprocess.run(
                ["scancel", "--user=root", "--signal=KILL"],
                env=self.environment, capture_output=True, timeout=30,
            )  # fmt: skip
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:  # steps outlive their slurmd
                kill(pid)
            time.sleep(0.05)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def processes(self, **variables: str) -> list[int]:
        """Processes of this bench, with these variables in their environment."""
        wanted = {f"{k}={v}" for k, v in {MARK: str(self.folder), **variables}.items()}
        return [pid for pid, words in _environments() if wanted <= words and pid != os.getpid()]

    def kill_daemon(self, node: str) -> None:
        """Kill the daemon of a node alone: what it started goes on."""
        self.daemons.pop(f"slurmd.{node}").kill()

    def kill_job(self, node: str, job: str) -> None:
        """Kill all processes of a job as a power cut does: nobody reports how it ended."""
        steps = self.processes(**{NODE: node})
        of_job = f"slurmstepd: [{job}.".encode()
        for pid in [pid for pid in steps if of_process(pid, "cmdline").startswith(of_job)]:
            kill(pid)
        for pid in self.processes(SLURM_JOB_ID=job):
            kill(pid)

    def mend(self) -> None:
        """Start the daemons of nodes that were killed; wait until all nodes are idle again."""
        for node in NODES:
            if f"slurmd.{node}" not in self.daemons:
                self.start_node(node)
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self._until(lambda: self._idle() == len(NODES), "its nodes")

    # Configuration

    def _write_configuration(self) -> None:
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        database = self.folder / "slurmdbd.conf"
        database.write_text(_lines(self._database()))
        database.chmod(0o600)
        self.conf.write_text(_lines(self._cluster()) + "\n".join(self._nodes()) + "\n")
        gres = []
        for node in NODES:
            # Copies of /dev/null stand for GPUs: a count without a file is refused.
            for i in range(2):
                os.mknod(self.folder / "dev" / f"{node}-gpu{i}", 0o20666, os.makedev(1, 3))
            gres.append(
                f"NodeName={node} Name=gpu AutoDetect=off File={self.folder}/dev/{node}-gpu[0-1]\n"
            )
        (self.folder / "gres.conf").write_text("".join(gres))

    def _database(self) -> dict[str, object]:
        return {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.sockets}/munge",
            "DbdHost": "localhost",
            "DbdAddr": "127.0.0.1",
            "DbdPort": self.ports[1],
            "SlurmUser": "root",
            "LogFile": f"{self.folder}/log/slurmdbd.log",
            "PidFile": f"{self.folder}/slurmdbd.pid",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "localhost",  # through MYSQL_UNIX_PORT: there is no network
            "StorageUser": "root",
            "StorageLoc": "slurm_acct_db",
        }

    def _cluster(self) -> dict[str, object]:
        folder = self.folder
        return {
            "ClusterName": "bench",
            "SlurmctldHost": f"{_host()}(127.0.0.1)",
            "SlurmctldPort": self.ports[0],
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # A requeued job waits for its credential to expire: 120 s, or what is said from 5 on.
            "AuthInfo": f"socket={self.sockets}/munge,cred_expire=5",
            "CredType": "cred/munge",
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",  # no cgroups, no systemd
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "ReturnToService": 2,
            "SlurmctldPidFile": f"{folder}/slurmctld.pid",
            "SlurmdPidFile": f"{folder}/slurmd.%n.pid",
            "SlurmdSpoolDir": f"{folder}/spool/%n",
            "StateSaveLocation": f"{folder}/state",
            "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
            "SlurmdLogFile": f"{folder}/log/slurmd.%n.log",
            "SlurmctldDebug": "info",
            "SlurmdDebug": "info",
            # The signal that a job asked for before its time limit also warns it of preemption.
            "SlurmctldParameters": "preempt_send_user_signal",
            "SlurmdParameters": "config_overrides",  # more CPUs than the machine has
            "GresTypes": "gpu",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=1,sched_interval=1,sched_min_interval=0,"
            "batch_sched_delay=0,bf_continue",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "DefMemPerCPU": 500,
            "MinJobAge": 300,
            "KillWait": 10,
            "InactiveLimit": 0,
            "MessageTimeout": 30,
            "SlurmctldTimeout": 120,
            "SlurmdTimeout": 300,  # a busy machine is no dead node
            "JobRequeue": 1,
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "PriorityType": "priority/basic",
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": self.ports[1],
            "AccountingStoragePass": f"{self.sockets}/munge",
            "AccountingStorageTRES": "gres/gpu",
        }

    def _nodes(self) -> Iterator[str]:
        for node, port in zip(NODES, self.ports[2:], strict=True):
            weight = 1 if node == NODES[-1] else 2  # the last one is filled first
            yield (
                f"NodeName={node} NodeHostname={_host()} NodeAddr=127.0.0.1 Port={port}"
                f" CPUs={self.cpus} RealMemory=16000 Gres=gpu:2 Weight={weight} State=UNKNOWN"
            )
        nodes = ",".join(NODES)
        yield (
            f"PartitionName=low Nodes={nodes} Default=YES MaxTime=INFINITE DefaultTime=30"
            f" PriorityTier=1 PreemptMode=REQUEUE GraceTime={GRACE_SECONDS} State=UP"
        )
        yield (
            f"PartitionName=high Nodes={nodes} Default=NO MaxTime=INFINITE DefaultTime=30"
            " PriorityTier=10 PreemptMode=OFF State=UP"
        )


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    """A cluster that is up inside, and gone afterwards."""
    made = Bench(folder)
    try:
        made.up()
        yield made
    finally:
        made.down()


def free_ports(count: int) -> list[int]:
    """Free ports below those that the system gives to outgoing connections."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(20_000, 32_000)
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def kill(pid: int) -> None:
    """Kill a process that may be gone by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def of_process(pid: int, name: str) -> bytes:
    """A file of /proc; empty once the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _environments() -> Iterator[tuple[int, set[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            words = of_process(int(folder.name), "environ").split(b"\0")
            yield int(folder.name), {word.decode(errors="replace") for word in words}


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def _tail(log: Path, lines: int = 8) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def main(action: str, folder: str) -> None:
    """Keep a bench up until a signal comes."""
    if action != "up":
        raise SystemExit(__doc__)
    require(install=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    try:
        with bench(Path(folder)) as made:
            print(f"up after {time.monotonic() - began:.1f} s: export SLURM_CONF={made.conf}")
            signal.pause()
    except KeyboardInterrupt:
        print("down")


if __name__ == "__main__":
    main(*sys.argv[1:])
