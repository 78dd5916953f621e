"""Runs that another place has finished are counted, brought and checked; the place is only read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import toy_cli
import toys
from lab import Lab, key

from alignlab import files, seal, upstream
from alignlab.commands import runs as runs_command
from alignlab.commands.upstream import behind, bring, with_upstream
from alignlab.errors import ConfigError, TrainingError
from alignlab.run import Run, Store
from alignlab.upstream import Upstream

CHAIN = {
    "a": toys.toy(1),
    "b": toys.toy(10, left="a"),
    "c": toys.toy(100, left="b"),
}
LONGER = {**CHAIN, "d": toys.toy(1000, left="b")}


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toys.use_toys(monkeypatch.setattr)
    monkeypatch.delenv("ALIGNLAB_RUNS", raising=False)
    monkeypatch.delenv("ALIGNLAB_UPSTREAM", raising=False)
    monkeypatch.setattr(upstream.time, "sleep", lambda seconds: None)


@pytest.fixture
def there(tmp_path) -> Lab:
    """A store elsewhere with the chain a → b → c, and a model that is large enough for a link."""
    lab = Lab(tmp_path / "there")
    plan = lab.plan(CHAIN)
    lab.execute(plan, "inprocess")
    for node in plan.nodes.values():
        run = lab.store.run(node.kind, node.key)
        (run.model_dir / "weights").write_bytes(node.name.encode() * 3_000_000)
        seal.put(run.path)
    return lab


@pytest.fixture
def here(tmp_path) -> Lab:
    return Lab(tmp_path / "here")


@pytest.fixture
def web(there):
    """The other store behind a web server; also the paths that were asked for."""
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp")
    asked: list[str] = []

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

        def list_directory(self, path):
            self.send_error(403, "no listing")

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(there.root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def memory(there):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.put(f"{there.root}/", "/upstream/runs/", recursive=True)
    yield "memory://upstream/runs"
    system.rm("/upstream", recursive=True)


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file below a folder."""
    found = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f): (files.sha256(f), f.stat().st_mtime_ns) for f in found}


def states(plan) -> dict[str, str]:
    return {
        n.name: "upstream" if n.upstream else "cached" if n.cached else "to do"
        for n in plan.nodes.values()
    }


@pytest.mark.slow
def test_a_folder_is_read_and_its_large_files_are_linked(there, here):
    before = tree(there.root)
    plan = with_upstream(here.plan(LONGER), [str(there.root)])
    assert states(plan) == {"a": "upstream", "b": "upstream", "c": "upstream", "d": "to do"}
    assert [node.name for node in plan.pending()] == ["d"]
    assert behind(plan) == {node.run for node in plan.nodes.values() if node.name in "ab"}
    assert plan.to_json()["stages"][0]["upstream"] == str(there.root)
    bring(plan, here.store, here.notes.append)
    assert here.execute(plan, "inprocess") == dict.fromkeys("abc", "cached") | {"d": "done"}
    assert here.total(plan, "d") == 1000 + 10 + 1
    for name in "abc":
        run = here.store.run("toy", key(plan, name))
        assert run.done
        assert run.verify() == []
        assert (run.model_dir / "weights").is_symlink()
        assert not (run.path / "record.json").is_symlink()
        assert run.record == there.store.run("toy", run.key).record
        assert not (run.path / "lease").exists()
    assert tree(there.root) == before
    assert len(here.notes) == 3
    # A second command finds them in the store, also when the other place is not named.
    again = here.plan(LONGER)
    assert set(states(again).values()) == {"cached"}
    bring(again, here.store, here.notes.append)
    assert len(here.notes) == 3


@pytest.mark.slow
def test_deleting_a_brought_run_leaves_the_other_place_alone(there, here):
    before = tree(there.root)
    plan = with_upstream(here.plan(CHAIN), [f"file://{there.root}"])
    bring(plan, here.store, here.notes.append)
    for run in here.store.runs():
        here.store.delete(run)
    assert here.store.runs() == []
    assert tree(there.root) == before


@pytest.mark.slow
def test_of_an_address_the_models_come_when_a_stage_needs_them(there, here, memory):
    plan = with_upstream(here.plan(CHAIN), [memory])
    assert set(states(plan).values()) == {"upstream"}
    bring(plan, here.store, here.notes.append)
    run_b = here.store.run("toy", key(plan, "b"))
    assert run_b.done
    assert run_b.missing() == ["model/total", "model/weights"]
    assert run_b.verify() == []
    assert run_b.summary() == {"total": 11}
    assert "2 of its model left there" in here.notes[0]
    # A stage that is run all the same says what it lacks, and the next command brings it.
    longer = here.plan(LONGER)
    assert here.execute(longer, "inprocess")["d"] == "failed"
    assert f"was brought from {memory}" in here.settled[-1].reason
    bring(longer, here.store, here.notes.append)
    assert run_b.missing() == []
    assert run_b.verify() == []
    assert here.store.run("toy", key(plan, "c")).missing()  # nothing stands on it
    assert here.execute(longer, "inprocess")["d"] == "done"
    assert here.total(longer, "d") == 1011


@pytest.mark.slow
def test_a_web_server_that_shows_no_folders(here, web):
    address, asked = web
    plan = with_upstream(here.plan(LONGER), [address])
    assert states(plan) == {"a": "upstream", "b": "upstream", "c": "upstream", "d": "to do"}
    bring(plan, here.store, here.notes.append)
    assert here.execute(plan, "inprocess")["d"] == "done"
    assert not any("weights" in path for path in asked if key(plan, "c") in path)
    assert any("weights" in path for path in asked if key(plan, "b") in path)
    for name in "ab":
        assert here.store.run("toy", key(plan, name)).verify() == []


@pytest.mark.slow
def test_the_first_of_several_places_counts_and_the_store_before_all(there, here, tmp_path):
    other = Lab(tmp_path / "other")
    other.execute(other.plan({"a": CHAIN["a"]}), "inprocess")
    here.execute(here.plan({"a": CHAIN["a"]}), "inprocess")
    plan = with_upstream(here.plan(CHAIN), [str(other.root), str(there.root)])
    assert states(plan) == {"a": "cached", "b": "upstream", "c": "upstream"}
    fresh = with_upstream(Lab(tmp_path / "new").plan(CHAIN), [str(other.root), str(there.root)])
    assert fresh.nodes[f"toy-{key(fresh, 'a')}"].upstream == str(other.root)


@pytest.mark.slow
def test_what_is_not_finished_there_does_not_count(there, here):
    plan = here.plan(CHAIN)
    (there.store.run("toy", key(plan, "b")).path / "DONE").unlink()
    assert states(with_upstream(plan, [str(there.root)]))["b"] == "to do"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_what_has_changed_there_is_refused(there, here, memory, kind):
    plan = with_upstream(here.plan(CHAIN), [str(there.root) if kind == "folder" else memory])
    run = f"toy-{key(plan, 'b')}"
    if kind == "folder":
        (there.root / run / "record.json").write_text("{}")
    else:
        import fsspec

        fsspec.filesystem("memory").pipe(f"/upstream/runs/{run}/record.json", b"{}")
    with pytest.raises(TrainingError, match=r"record.json cannot be had .*not what was sealed"):
        bring(plan, here.store, here.notes.append)
    assert not here.store.run("toy", key(plan, "b")).done
    assert here.store.run("toy", key(plan, "a")).done  # what came before stays


@pytest.mark.slow
def test_what_is_gone_when_it_is_brought(there, here):
    plan = with_upstream(here.plan(CHAIN), [str(there.root)])
    shutil.rmtree(there.root / f"toy-{key(plan, 'b')}")
    with pytest.raises(TrainingError, match="is not, or no longer, finished in"):
        bring(plan, here.store, here.notes.append)


@pytest.mark.slow
def test_a_transfer_that_breaks_is_tried_again_and_goes_on_where_it_was(
    there, here, memory, monkeypatch
):
    plan = with_upstream(here.plan(LONGER), [memory])
    real, calls = Upstream._fetch, []

    def breaks(self, name, copy):
        calls.append(name)
        if name.endswith("metrics.jsonl") and calls.count(name) < 3:
            raise ConnectionError("reset by peer")
        if name == f"toy-{key(plan, 'a')}/model/total" and calls.count(name) < 4:
            raise ConnectionError("reset by peer")
        real(self, name, copy)

    monkeypatch.setattr(Upstream, "_fetch", breaks)
    with pytest.raises(TrainingError, match=r"model/total cannot be had .*reset by peer"):
        bring(plan, here.store, here.notes.append)
    first = list(calls)
    bring(plan, here.store, here.notes.append)  # finds the files that were there
    run = here.store.run("toy", key(plan, "a"))
    assert run.verify() == []
    assert run.missing() == []
    again = [name for name in calls[len(first) :] if name.startswith(run.name)]
    assert f"{run.name}/model/total" in again
    assert not {f"{run.name}/config.json", f"{run.name}/metrics.jsonl"} & set(again)


@pytest.mark.slow
def test_an_unfinished_run_gives_way(there, here):
    plan = with_upstream(here.plan(CHAIN), [str(there.root)])
    run = here.store.run("toy", key(plan, "a"))
    run.log(7, {"loss": 1.0})
    run.state_dir.mkdir()
    (run.state_dir / "step.json").write_text("{}")
    (run.path / "extra.txt").write_text("of the attempt here")
    bring(plan, here.store, here.notes.append)
    assert run.verify() == []
    assert not (run.path / "extra.txt").exists()
    assert not run.state_dir.exists()


@pytest.mark.slow
def test_a_seal_that_names_a_file_outside_of_the_run(there, here):
    plan = with_upstream(here.plan(CHAIN), [str(there.root)])
    done = there.root / f"toy-{key(plan, 'a')}" / "DONE"
    said = json.loads(done.read_text())
    done.write_text(json.dumps({**said, "files": {"../../evil": "0" * 64}}))
    with pytest.raises(TrainingError, match=r"the seal of toy-\w+ names \.\./\.\./evil"):
        bring(plan, here.store, here.notes.append)


@pytest.mark.slow
def test_links_to_a_place_that_is_not_mounted_any_more(there, here, tmp_path):
    plan = with_upstream(here.plan(CHAIN), [str(there.root)])
    bring(plan, here.store, here.notes.append)
    there.root.rename(tmp_path / "away")
    longer = here.plan(LONGER)
    assert states(longer)["b"] == "cached"
    assert here.execute(longer, "inprocess")["d"] == "failed"
    assert "its model/weights is not here. Is that place mounted?" in here.settled[-1].reason
    with pytest.raises(ConfigError, match="there is nothing at"):
        bring(longer, here.store, here.notes.append)
    (tmp_path / "away").rename(there.root)
    assert here.execute(here.plan(LONGER), "inprocess")["d"] == "done"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("/no/such/folder", "there is nothing at /no/such/folder. Is it mounted"),
        ("memory://no/such", "there is nothing at memory://no/such"),
        ("nope://x", "nope://x cannot be reached"),
        ("abfs://x/y", "abfs://x/y needs a package that is not installed"),
        ("http://127.0.0.1:9/runs", "there is nothing at http://127.0.0.1:9/runs"),
    ],
)
def test_a_place_that_is_not_there_is_an_error(here, place, says):
    with pytest.raises(ConfigError, match=f"store_upstream: {says}"):
        with_upstream(here.plan(CHAIN), [place])


@pytest.mark.slow
def test_an_address_on_a_server_that_is_wrong(here, web):
    with pytest.raises(ConfigError, match="there is nothing at"):
        with_upstream(here.plan(CHAIN), [f"{web[0]}/wrong"])


def brought(root: str, place: str, start, out) -> None:
    toys.use_toys(lambda name, value: setattr(__import__("alignlab.plan").plan, "locate", value))
    lab = Lab(Path(root))
    plan = with_upstream(lab.plan(CHAIN), [place])
    start.wait()
    bring(plan, lab.store, lambda text: out.put(text))


@pytest.mark.slow
def test_several_processes_bring_the_same_runs(there, here):
    import multiprocessing

    spawn = multiprocessing.get_context("fork")
    start, out = spawn.Event(), spawn.Queue()
    place = str(there.root)
    started = [
        spawn.Process(target=brought, args=(str(here.root), place, start, out)) for _ in range(3)
    ]
    for process in started:
        process.start()
    start.set()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    for run in here.store.runs():
        assert run.verify() == []
    assert len(here.store.runs()) == 3


@pytest.mark.slow
def test_the_command_line(there, tmp_path, capsys, monkeypatch):
    conf = toy_cli.write_conf(tmp_path / "conf")
    top = (conf / "config.yaml").read_text()
    (conf / "config.yaml").write_text(f"{top}store_upstream: []\n")
    script = [sys.executable, str(Path(toy_cli.__file__)), str(conf)]
    here = {**os.environ, "PYTHONPATH": str(toys.ROOT), "ALIGNLAB_RUNS": str(tmp_path / "here")}

    def call(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*script, *arguments], capture_output=True, text=True, env={**here, **env}, check=False
        )

    first = call("run", "study=x", ALIGNLAB_RUNS=str(tmp_path / "shared"))
    assert first.returncode == 0, first.stderr
    place = str(tmp_path / "shared")
    spelled = call("plan", f"store.upstream=[{place}]", "--json")
    assert [s["upstream"] for s in json.loads(spelled.stdout)["stages"]] == [place, place]
    table = call("plan", ALIGNLAB_UPSTREAM=f"{place},")
    assert f"Upstream: 2 from {place}" in table.stdout
    assert "all in the store: nothing to do" in table.stdout
    wrong = call("plan", "store_upstream=[/no/such]")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("alignlab: store_upstream: there is nothing at /no/such")
    done = call("run", "study=x", f"store_upstream=[{place}]")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cached") == 2
    assert f"from {place}" in done.stderr
    # The study is the same whether or not a place is named.
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "here"))
    runs_command.act("ls", None, delete=False)
    listed = capsys.readouterr().out
    assert listed.count(place) == 2
    [name, *_] = [run.name for run in Store(tmp_path / "here").runs()]
    runs_command.act("show", name, delete=False)
    assert f"brought from       {place}" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "here" / name)
    monkeypatch.setenv("ALIGNLAB_UPSTREAM", f"{place},/not/there")
    runs_command.act("ls", None, delete=False)
    printed = capsys.readouterr()
    assert printed.out.count(place) == 2
    assert "there is nothing at /not/there" in printed.err
    assert Run(tmp_path / "shared" / name).verify() == []


@pytest.mark.slow
def test_the_doctor_looks_at_the_places(there, monkeypatch):
    from alignlab.commands import doctor

    monkeypatch.setenv("ALIGNLAB_UPSTREAM", f"{there.root}, /not/there")
    found = [(finding.good, finding.text) for finding in doctor._upstream()]
    assert found[0] == (True, f"{there.root}: 3 runs")
    assert found[1][0] is False
    assert "there is nothing at /not/there" in found[1][1]
