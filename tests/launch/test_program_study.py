"""``alignlab run`` as torchrun starts it: one process plans and speaks, all execute."""

from __future__ import annotations

from pathlib import Path

import pytest
import team_cli
import teams

from alignlab.run import Store

pytestmark = pytest.mark.scale


@pytest.mark.slow
def test_a_study_in_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    conf = team_cli.write_conf(tmp_path / "conf")
    started = teams.start("team_cli.py", str(conf), "run")
    spoken = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [1, 1], spoken  # c has diverged
    (out, err), (other, _) = spoken
    ends = [line.split() for line in out.splitlines() if "  " in line]
    assert [(words[0], words[2]) for words in ends] == [
        ("done", "a"), ("done", "b"), ("failed", "c"), ("blocked", "e"), ("done", "d"),
    ]  # fmt: skip
    assert "the loss is not finite." in err
    assert other == ""
    runs = {run.record["name"]: run for run in Store(tmp_path / "runs").runs()}
    assert runs["d"].summary() == {"total": 100 + 200 + 10 + 20 + 7}
    assert runs["d"].record["processes"] == {"started": 2, "nodes": 1, "at_work": 2}
    assert runs["a"].record["processes"] == {"started": 2, "nodes": 1, "at_work": 1}
    assert runs["c"].record["error_kind"] == "diverged"

    again = teams.start("team_cli.py", str(conf), "run", "stages.c.ends=null")
    codes, text = teams.finished(again)
    assert codes == [0, 0], text


@pytest.mark.slow
def test_a_mistake_in_the_command_ends_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    conf = team_cli.write_conf(tmp_path / "conf")
    # Found when the first process plans, while the other waits.
    codes, text = teams.finished(
        teams.start("team_cli.py", str(conf), "run", "stages.b.inputs.left=nobody")
    )
    assert codes == [2, 2], text
    assert "nobody" in text
    assert "Traceback" not in text
