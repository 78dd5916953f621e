"""The report as a W&B run: offline to a folder, online to a stand-in for the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_study import FakeStore, write_json, write_study

from alignlab.engine.tracking import Tracking
from alignlab.report.analysis import analyse
from alignlab.report.page import write_report
from alignlab.report.table import read_study
from alignlab.report.tracking import publish, tracking_of

SCRIPT = """
import sys
from pathlib import Path
from alignlab.engine import mirror
from alignlab.engine.tracking import Tracking
from alignlab.report.analysis import analyse
from alignlab.report.table import read_study
from alignlab.report.tracking import publish
from fake_study import FakeStore
mirror.INIT_SECONDS = mirror.FINISH_SECONDS = 6.0
store = FakeStore(Path(sys.argv[1]))
analysis = analyse(read_study("demo", store))
tracking = Tracking(mode="auto", project="p", entity=None)
print("said", publish(analysis, store.studies / "demo" / "report", tracking, seconds=20))
"""


# The same, online to a server in the same process.
SERVED = (
    """
import json, os
from wandb_server import WandbServer
server = WandbServer()
os.environ.update(WANDB_BASE_URL=server.url, WANDB_API_KEY="k" * 40)
"""
    + SCRIPT
    + """
print("seen", json.dumps({"uploads": [n for n, _ in server.operations if n.startswith("upload")],
                          "artifacts": server.artifacts}))
"""
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> FakeStore:
    """A small study with its report."""
    root = tmp_path_factory.mktemp("tracked")
    write_study(root, prompts=6, missing=False)
    store = FakeStore(root)
    write_report(analyse(read_study("demo", store)), store)
    return store


def published(store: FakeStore, home: Path, script: str = SCRIPT, **env: str) -> tuple[str, str]:
    """Publish in a process of its own: W&B keeps one set of settings per process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    here = Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent / "engine", here.parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", script, str(store.root)], timeout=120, text=True,
        capture_output=True, env={**clean, "HOME": str(home), "PYTHONPATH": paths, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_offline_holds_ranking_figures_and_page(written, tmp_path):
    out, _ = published(written, tmp_path, WANDB_MODE="offline")
    assert "wandb sync" in out
    folder = next((written.root / "wandb").glob("offline-run-*"))
    media = folder / "files" / "media"
    table = json.loads(next(media.glob("table/ranking_*")).read_text(encoding="utf-8"))
    assert table["columns"][0] == "method"
    assert {row[0] for row in table["data"]} >= {"SFT", "DPO", "best of 8"}
    images = {path.name.split("_")[0] for path in media.glob("images/figures/*.png")}
    assert images >= {"frontier", "rewards", "cost", "curve-dpo"}
    page = next(media.glob("html/report_*.html")).read_text(encoding="utf-8")
    assert '<section id="ranking">' in page
    # A second report of the same study continues the same run.
    identity = json.loads((written.studies / "demo" / "wandb.json").read_text(encoding="utf-8"))
    assert folder.name.endswith(identity["id"])
    published(written, tmp_path, WANDB_MODE="offline")
    folders = list((written.root / "wandb").glob("offline-run-*"))
    assert all(path.name.endswith(identity["id"]) for path in folders)


@pytest.mark.slow
def test_online_uploads_table_figures_and_page(written, tmp_path):
    out, _ = published(written, tmp_path, SERVED)
    assert "said http://127.0.0.1" in out
    seen = json.loads(out.split("seen ", 1)[1])
    assert "report" in seen["artifacts"].values()
    for part in ("table/ranking_", "images/figures/frontier_", "html/report_"):
        assert any(f"/media/{part}" in name for name in seen["uploads"]), part


@pytest.mark.slow
def test_a_server_that_fails_stops_nothing(written, tmp_path):
    closed = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40}
    out, err = published(written, tmp_path, **closed)
    assert "said None" in out
    assert "W&B could not take the report" in err
    assert "Traceback" not in err


def test_disabled_tracking_does_nothing(written):
    analysis = analyse(read_study("demo", written))
    off = Tracking(mode="disabled", project="p", entity=None)
    assert publish(analysis, written.studies / "demo" / "report", off) is None


def test_the_report_goes_where_the_newest_run_went(written):
    study = read_study("demo", written)
    assert tracking_of(study).project == "alignlab"
    for name, project, started in (("sft-0a", "old", 1.0), ("ppo-1a-ppo", "new", 2.0)):
        file = written.root / name / "record.json"
        record = json.loads(file.read_text(encoding="utf-8"))
        place = {"mode": "disabled", "project": project, "entity": "team"}
        write_json(file, {**record, "tracking": place, "started": started})
    found = tracking_of(read_study("demo", written))
    assert (found.mode, found.project, found.entity) == ("auto", "new", "team")


@pytest.mark.slow
def test_report_wandb_publishes_and_report_alone_does_not(written, monkeypatch, capsys):
    from alignlab.cli import main

    called = []
    monkeypatch.setenv("ALIGNLAB_RUNS", str(written.root))
    monkeypatch.setattr(
        "alignlab.report.tracking.publish",
        lambda analysis, folder, tracking: called.append((folder, tracking.mode)) or "there",
    )
    assert main(["report", "demo"]) == 0
    assert called == []
    assert main(["report", "demo", "--wandb"]) == 0
    assert called == [(written.studies / "demo" / "report", "auto")]
    assert "W&B report: there" in capsys.readouterr().err
