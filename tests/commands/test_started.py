"""The words that start the processes of this command again."""

from __future__ import annotations

import pytest

from alignlab.commands import started
from alignlab.commands.study_name import command_line

TORCHRUN = {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        (
            "/bin/python /bin/torchrun --nproc_per_node 2 --rdzv_endpoint=a:1 -m alignlab run x=1",
            "torchrun --nproc_per_node 2 --rdzv_endpoint=a:1",
        ),
        (
            "python3 -m torch.distributed.run --nnodes 2 -m alignlab run -m seed=1,2",
            "python -m torch.distributed.run --nnodes 2",
        ),
        (
            "/opt/python /opt/bin/accelerate launch --num_processes 2 /opt/bin/alignlab run",
            "accelerate launch --num_processes 2",
        ),
        # Not ours to repeat: another program, and a shell; then the environment says it.
        ("mpirun -n 2 alignlab run", "torchrun --nproc_per_node 8"),
        ("bash", "torchrun --nproc_per_node 8"),
    ],
)  # fmt: skip
def test_words_of_the_launcher(parent: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started, "_parent", lambda: parent.split())
    told = {**TORCHRUN, "WORLD_SIZE": "8"}
    assert " ".join(started.launcher_words(told)) == words
    assert started.launcher_words({}) == []
    assert started.launcher_words({"WORLD_SIZE": "2"}) == []  # by something else than torchrun


def test_several_nodes_meet_where_they_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started, "_parent", list)
    told = {**TORCHRUN, "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "node-a"}
    assert " ".join(started.launcher_words(told)) == (
        "torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint node-a:29500"
    )


def test_the_command_behind_them() -> None:
    words = ["torchrun", "--nproc_per_node", "2"]
    said = command_line(["pipeline=sft", "study=a b"], multirun=True, launcher=words)
    assert said == "torchrun --nproc_per_node 2 -m alignlab run -m pipeline=sft 'study=a b'"
    assert command_line([], multirun=False) == "alignlab run"
