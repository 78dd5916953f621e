"""Batch scripts: what Slurm is asked for, and what a job does from its start to its requeue."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignlab.launch.outcomes import EXIT_CODES
from alignlab.launch.resources import Resources

_OPENING = """
# USR1: the nodes will be taken away soon: save, and come again. TERM: they are taken away now, and
# whether the job comes again is the scheduler's to say. Either may come before there is a stage.
stage= asked= ended=
trap 'asked=1; [ -z "$stage" ] || kill -USR1 "$stage" 2> /dev/null' USR1
trap 'ended=1; [ -z "$stage" ] || kill -TERM "$stage" 2> /dev/null' TERM
run=$1
if [ -n "$SLURM_ARRAY_TASK_ID" ]; then  # $1 is then a list of indices and runs
    run=$(while read -r index name; do
        if [ "$index" = "$SLURM_ARRAY_TASK_ID" ]; then echo "$name"; fi
    done < "$1")
fi
exec >> "$study/logs/$run.log" 2>&1
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
start=$((${{SLURM_RESTART_COUNT:-0}} + 1))
echo "[slurm] job $job on $SLURM_JOB_NODELIST, start $start, $(date '+%F %T')"
task=$study/tasks/$run.json
{threads}"""

_ALONE = """
"$python" -m alignlab.launch.program --here "$task" &
stage=$!
"""

# Not through torchrun: its agent dies of SIGUSR1, and ends with 1 whatever its processes end with.
# They end each other when one is lost; srun, which would kill those that still save, comes after.
_TOGETHER = """
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((10000 + (SLURM_JOB_ID + ${{SLURM_RESTART_COUNT:-0}}) % 22000))
export MASTER_ADDR MASTER_PORT python task
srun --kill-on-bad-exit=0 --wait=60{cpus} bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE={ranks}
    exec "$python" -m alignlab.launch.program "$task"' &
stage=$!
"""

_CLOSING = """
if [ -n "$asked$ended" ]; then kill -USR1 "$stage"; fi  # asked before it was there
while kill -0 "$stage" 2> /dev/null; do  # a signal ends `wait`, not the stage
    wait "$stage"
done
wait "$stage"
code=$?
# 138, death by USR1: it was asked before it could listen, and had nothing to save yet.
if [ "$code" = 138 ]; then code={interrupted}; fi
# Bash (5.2) forgets the code of a stage that ends while a signal is handled, about once in 1,000.
if [ -n "$asked$ended" ] && {{ [ "$code" -lt 0 ] || [ "$code" = 127 ]; }}; then
    code={interrupted}
fi
if [ "$code" = {interrupted} ] && [ -z "$ended" ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ]; then
        echo "[slurm] interrupted with its state saved: requeued"
        scontrol requeue "$SLURM_JOB_ID" && exec sleep 60  # until the scheduler ends it
    else
        echo "[slurm] interrupted, and requeued {requeues} times before: launch.max_requeues"
    fi
fi
echo "[slurm] exit code $code"
out=$study/jobs/$SLURM_JOB_NAME.${{SLURM_ARRAY_TASK_ID:-0}}.out
if [ ! -s "$out" ]; then rm -f "$out"; fi
exit "$code"
"""


@dataclass(frozen=True)
class Setting:
    """What the jobs of one study share."""

    study: str  # its folder
    directory: str  # where the command was given: what relative paths are relative to
    python: str
    setup: tuple[str, ...]  # lines of shell
    signal_seconds: int
    max_requeues: int


def stage_script(setting: Setting, resources: Resources, threads: int | None) -> str:
    """Script whose jobs execute stages: its argument is a run, or for an array a list of runs.

    ``threads`` are those of a process; None divides the CPUs of the job among its processes.
    """
    together = resources.world > 1
    cpus = f" --cpus-per-task={resources.cpus}" if resources.cpus else ""
    parts = [
        "\n".join(_head(setting, resources)),
        f"#SBATCH --signal=B:USR1@{setting.signal_seconds}\n#SBATCH --requeue",
        _common(setting),
        _OPENING.format(threads=_threads(resources, threads)),
        *setting.setup,
        _TOGETHER.format(cpus=cpus, ranks=resources.ranks) if together else _ALONE,
        _CLOSING.format(interrupted=EXIT_CODES["interrupted"], requeues=setting.max_requeues),
    ]
    return "\n".join(part.strip("\n") for part in parts) + "\n"


def last_script(setting: Setting, resources: Resources, command: Sequence[str]) -> str:
    """Script of the job that comes after all others: submits what is left, writes the report."""
    words = shlex.join(command)
    parts = [
        "\n".join(_head(setting, resources)),
        _common(setting),
        *setting.setup,
        f'exec "$python" {words}',
    ]
    return "\n".join(parts) + "\n"


def _common(setting: Setting) -> str:
    return "\n".join(
        (
            f"#SBATCH --chdir={shlex.quote(setting.directory)}",
            "#SBATCH --open-mode=append",
            "",
            f"study={shlex.quote(setting.study)}",
            f"python={shlex.quote(setting.python)}",
        )
    )


def _head(setting: Setting, resources: Resources) -> Iterator[str]:
    yield "#!/bin/bash"
    yield f"# Written by alignlab for the study in {setting.study}; arguments: see the end."
    options = {
        "nodes": resources.nodes,
        "ntasks-per-node": resources.ranks,
        "cpus-per-task": resources.cpus,
        "gres": f"gpu:{resources.gpus}" if resources.gpus else None,
        "mem": resources.memory,
        "time": resources.time,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
    }
    for name, value in options.items():
        if value is not None:
            yield f"#SBATCH --{name}={value}"
    for line in resources.extra:
        yield f"#SBATCH {line}"


def _threads(resources: Resources, threads: int | None) -> str:
    share = f"${{SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE / {resources.ranks}))}}"
    number = str(threads) if threads else share
    lines = [
        f"threads={number}",
        'if [ "${threads:-0}" -lt 1 ]; then threads=1; fi',
        "export OMP_NUM_THREADS=$threads MKL_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads",
    ]
    return "\n".join(lines)
