"""The calls to Weights & Biases for one run; made by the tracker's thread alone."""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from alignlab.run import Run, content_key

if TYPE_CHECKING:
    import wandb

INIT_SECONDS = 20.0  # until a server that does not answer is given up
FINISH_SECONDS = 20.0  # for the upload of what is left; it stays on disk in any case
TABLE_ROWS = 1000

# Set once a server did not answer in this process: sixty short stages must not wait for it each.
unreachable = threading.Event()


class Mirror:
    """One W&B run: metrics with a step axis of their own per split, a sample table, lineage."""

    def __init__(
        self,
        description: Mapping[str, Any],
        mode: Literal["offline", "online"],
        warn: Callable[[str], None],
    ) -> None:
        self.description = dict(description)
        self.mode = mode
        self.place: dict[str, Any] = {}  # id, mode, dir and url, once the run is open
        self._warn = warn
        self._run: wandb.Run | None = None
        self._splits: set[str] = set()
        self._from_step = 0  # a resumed online run has the steps before this one already
        self._last_step = 0
        self._rows: list[dict[str, Any]] = []
        self._unseen_rows = 0

    def open(self) -> None:
        """Start the run, or continue the one of the same id; offline when the server fails."""
        try:
            self._run = self._init(self.mode)
        except (Exception, SystemExit) as error:
            if self.mode == "offline":
                raise
            unreachable.set()
            self.mode = "offline"
            # W&B still holds the id for the run that it could not start.
            self.description["id"] += "-offline"
            self._run = self._init("offline")
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            self._warn(
                f"W&B is not reachable ({reason}); this run is logged offline, "
                f"`wandb sync {Path(self._run.dir).parent}` uploads it."
            )
        url = self._run.url if self.mode == "online" else None
        self.place = {
            "id": self.description["id"],
            "mode": self.mode,
            "dir": str(Path(self._run.dir).parent),
            "url": url,
        }
        if url:
            print(f"W&B: {url}", file=sys.stderr, flush=True)
        if self._run.resumed:
            self._from_step = self._run.starting_step

    def log(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        """Log one step of one split; a step that a resumed run already has is left out."""
        run = self._opened()
        if split not in self._splits:
            self._splits.add(split)
            run.define_metric(f"{split}/step", hidden=True)
            run.define_metric(f"{split}/*", step_metric=f"{split}/step")
        if step < self._from_step:
            return
        values = {f"{split}/{name}": value for name, value in metrics.items()}
        # W&B's own step may not go back: an earlier one of another split keeps its own axis only.
        self._last_step = max(step, self._last_step)
        run.log({**values, f"{split}/step": step}, step=self._last_step)

    def sample(self, row: Mapping[str, Any]) -> None:
        """Keep one sample for the table that ``close`` logs."""
        if len(self._rows) < TABLE_ROWS:
            self._rows.append(dict(row))
        else:
            self._unseen_rows += 1

    def close(self, summary: Mapping[str, float], failed: bool) -> None:
        """Log table, summary and model reference, and end the run."""
        import wandb

        run = self._opened()
        self._try("log the summary", lambda: run.summary.update(dict(summary)))
        self._try("log the samples", lambda: self._log_samples(wandb))
        if not failed:
            self._try("log the model", lambda: run.log_artifact(self._output(wandb, self._folder)))
        if self.mode == "online":
            self._try("record the inputs", lambda: self._use_inputs(wandb))
        run.finish(exit_code=int(failed))

    @property
    def _folder(self) -> Run:
        return Run(Path(self.description["config"]["run_folder"]))

    def _init(self, mode: Literal["offline", "online"]) -> wandb.Run:
        return start(self.description, mode)

    def _opened(self) -> wandb.Run:
        if self._run is None:
            raise RuntimeError("the W&B run could not be opened")
        return self._run

    def _log_samples(self, wandb: Any) -> None:
        if not self._rows:
            return
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        data = [[_cell(row.get(name)) for name in columns] for row in self._rows]
        run = self._opened()
        run.log({"samples": wandb.Table(columns=columns, data=data)}, step=self._last_step)
        run.summary["samples_total"] = len(self._rows) + self._unseen_rows

    def _inputs(self, wandb: Any) -> dict[str, Callable[[], Any]]:
        """Name what this run reads, data set and runs, with a way to make each artifact."""
        config = self.description["config"]
        store = self._folder.path.parent
        inputs: dict[str, Callable[[], Any]] = {}
        if data := config.get("data"):
            name = f"data-{content_key(data)}"
            inputs[name] = lambda: self._dataset(wandb, name, data)
        for parent in config["run_inputs"].values():
            inputs[parent] = functools.partial(self._output, wandb, Run(store / parent))
        return inputs

    def _use_inputs(self, wandb: Any) -> None:
        """Draw the edges data → SFT → reward → policy.

        At the end of a run, because W&B waits here without a limit until the server has answered,
        and the metrics must not wait behind it. An artifact that the project does not have, for
        example of a run made offline, is made here.
        """
        for name, make in self._inputs(wandb).items():
            try:
                self._opened().use_artifact(f"{name}:latest")
            except Exception:  # W&B has many words for "not there"
                self._opened().use_artifact(make())

    def _dataset(self, wandb: Any, name: str, data: Any) -> Any:
        artifact = wandb.Artifact(name, type="dataset", metadata={"config": data})
        with artifact.new_file("data.json") as file:
            json.dump(data, file, sort_keys=True)
        return artifact

    def _output(self, wandb: Any, folder: Run) -> Any:
        """Refer to a run's result where it lies; its bytes are not uploaded."""
        model = folder.model_dir.is_dir()
        record = folder.record
        metadata = {
            "kind": folder.kind,
            "key": folder.key,
            "inputs": record.get("inputs", {}),
            "summary": record.get("summary", {}),
        }
        artifact = wandb.Artifact(
            folder.name, type="model" if model else "dataset", metadata=metadata
        )
        place = folder.model_dir if model else folder.path
        artifact.add_reference(place.resolve().as_uri(), name="files", checksum=False)
        return artifact

    def _try(self, what: str, call: Callable[[], Any]) -> None:
        """Make a call that the metrics do not depend on."""
        try:
            call()
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            self._warn(f"W&B could not {what} ({type(error).__name__}: {text}).")


def start(description: Mapping[str, Any], mode: Literal["offline", "online"]) -> wandb.Run:
    """Call ``wandb.init`` as every run of alignlab does: bounded waits, silent, no code copied."""
    import wandb

    # W&B ignores a folder that does not exist, and writes to the temporary one instead.
    Path(description["dir"]).mkdir(parents=True, exist_ok=True)
    return wandb.init(
        **description,
        mode=mode,
        resume="allow",
        reinit="create_new",  # several runs live in one process
        settings=wandb.Settings(
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            x_transaction_log_flush_interval=1,  # a kill loses a second, not 15
            console="off",
            silent=True,
            disable_git=True,  # env.json has the commit and the hash of the difference
            disable_code=True,
        ),
    )


def _cell(value: Any) -> Any:
    """A value of a table column; W&B takes numbers and text."""
    plain = value is None or isinstance(value, (str, int, float, bool))
    return value if plain else json.dumps(value, ensure_ascii=False, default=str)
