"""A planned study on a data file, its record, and finished runs made up for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alignlab.commands.study import prepare
from alignlab.commands.study_file import StudyFile, asked
from alignlab.environment import environment
from alignlab.run import Store

ROWS = [
    {"prompt": f"Question {i}?", "chosen": f" A good answer {i}.", "rejected": f" A bad one {i}."}
    for i in range(40)
]
METRICS = {"evaluate": {"gold": 0.5, "audit": 0.25}}


class StudyLab:
    """`alignlab run` up to the point where the first stage would start."""

    def __init__(self, root: Path, data: Path | None, *overrides: str) -> None:
        words = ["experiment=smoke", "pipeline=preference", "study=mine", "tracking=disabled"]
        words += [f"store={root}", *([f"data.path={data}"] if data else []), *overrides]
        sweep = any("," in word for word in overrides)
        self.session = prepare(words, sweep)
        self.store = Store(root)
        settings = self.session.settings
        stated = asked("alignlab run", words, self.session.place.engine, settings.launch)
        self.file = StudyFile("mine", self.store, self.session.plan, stated)

    @property
    def folder(self) -> Path:
        return self.file.folder

    def record(self) -> dict[str, Any]:
        self.file.open(1)
        return json.loads((self.folder / "record.json").read_text())

    def finish(self, gold: dict[int, float] | None = None) -> None:
        """Let every stage be done here and now; ``gold`` is what a seed's policies score."""
        for node in self.session.plan.nodes.values():
            run = self.store.run(node.kind, node.key)
            seed = node.stage.seed
            summary = dict(METRICS.get(node.kind, {}))
            if gold and "gold" in summary:
                summary["gold"] = gold[seed]
            run.update_record(label=node.name, key=node.key, summary=summary, threads=1)
            (run.path / "env.json").write_text(json.dumps(environment()))
            for prompt, value in enumerate((0.25, 0.75)):
                run.sample({"prompt_id": str(prompt), "gold": value, "seed": seed})
            run.finish()


def write_rows(file: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Write a data file of preference pairs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS))
    return file
