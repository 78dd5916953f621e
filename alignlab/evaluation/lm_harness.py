"""Any task of EleutherAI's lm-evaluation-harness, through its public Python API."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from alignlab.annotations import Range
from alignlab.data.rows.fingerprint import fingerprint_of
from alignlab.errors import ConfigError, DataError, did_you_mean
from alignlab.evaluation.policy import Policy
from alignlab.evaluation.task import Better, Result, Row
from alignlab.rewards.reward import fingerprint

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

VERSION = 1
PACKAGE = "lm_eval"


@dataclass(frozen=True, kw_only=True)
class LmHarness:
    """Tasks of lm-eval by name; every logged sample is a row, every lm-eval task a part of its own.

    Tasks that lm-eval ships read their data from the Hugging Face hub; a task written as yaml in
    ``include_path`` may read a local file. Metrics that lm-eval gives per sample are kept; those it
    computes from the whole set alone (F1 over a corpus) are in the record, under ``results``.
    """

    tasks: tuple[str, ...]
    include_path: str | None
    limit: Annotated[int, Range(min=1)] | None
    num_fewshot: Annotated[int, Range(min=0)] | None
    chat_template: bool
    max_new_tokens: Annotated[int, Range(min=1)]
    batch: Annotated[int, Range(min=1)]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks: name at least one task of lm-eval.")
        if self.include_path is not None and not Path(self.include_path).expanduser().is_dir():
            raise ConfigError(f"include_path={self.include_path}: no such folder.")

    @property
    def tokens(self) -> int:
        """Unknown before the tasks are built."""
        return 0

    def fingerprint(self) -> str:
        """Hash of the fields, lm-eval's version and all files of ``include_path``.

        Data that a task reads from elsewhere (the hub) are not part of it.
        """
        require()
        files: list[Path] = []
        if self.include_path is not None:
            found = Path(self.include_path).expanduser().rglob("*")
            files = sorted(f for f in found if f.is_file() and "__pycache__" not in f.parts)
        content = fingerprint_of(files, [f.name for f in files])
        return fingerprint(self, VERSION, metadata.version(PACKAGE), content)

    def run(self, policy: Policy) -> Result:
        """Evaluate; rows in lm-eval's order."""
        require()
        import lm_eval
        from lm_eval.tasks import TaskManager

        from alignlab.evaluation.harness_model import PolicyLM

        manager = TaskManager(include_path=self.include_path)
        self._known(manager)
        model = PolicyLM(policy, self.max_new_tokens, self.batch)
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(self.tasks),
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            bootstrap_iters=0,
            apply_chat_template=self.chat_template,
            task_manager=manager,
            random_seed=policy.seed,
            numpy_random_seed=policy.seed,
            torch_random_seed=policy.seed,
            fewshot_random_seed=policy.seed,
        )
        rows, skipped = rows_of(found["samples"])
        warnings = []
        if model.cut:
            warnings.append(f"lm_harness: {model.cut} contexts did not fit and lost their start")
        if skipped:
            listed = ", ".join(sorted(skipped))
            warnings.append(f"lm_harness: not one number per sample, so without rows: {listed}")
        notes = {
            "lm_eval": metadata.version(PACKAGE),
            "versions": dict(found.get("versions", {})),
            "shots": dict(found.get("n-shot", {})),
            "results": plain(found.get("results", {})),
        }
        return Result(rows, directions(rows, found.get("higher_is_better", {})), notes, warnings)

    def _known(self, manager: TaskManager) -> None:
        known = set(manager.all_tasks)
        for name in self.tasks:
            if name not in known and not manager.match_tasks([name]):
                raise DataError(
                    f"lm-eval knows no task '{name}'.{did_you_mean(name, known)} A task of your own"
                    " needs include_path, the folder of its yaml."
                )


def require() -> None:
    """Refuse to go on without lm-eval."""
    if find_spec(PACKAGE) is None:
        raise ConfigError(
            "the task lm_harness needs lm-eval, which is not installed: pip install"
            " 'alignlab[harness]' (or pip install 'lm-eval>=0.4.9,<0.5')."
        )


def rows_of(samples: Mapping[str, Any]) -> tuple[list[Row], set[str]]:
    """One row per number of every logged sample, and the metrics that are no such number.

    A pair (log-likelihood, count), as of word perplexity, becomes −log-likelihood / count with the
    count as weight, named ``METRIC_nll``. Where lm-eval filters answers in several ways, the filter
    is part of the metric's name.
    """
    rows: list[Row] = []
    skipped: set[str] = set()
    for task, logged in samples.items():
        filters = {sample.get("filter", "none") for sample in logged}
        for sample in logged:
            way = f",{sample['filter']}" if len(filters) > 1 else ""
            for metric in sample["metrics"]:
                value, name, weight = sample[metric], metric + way, 1.0
                if isinstance(value, (tuple, list)) and len(value) == 2 and _numbers(value):
                    weight = float(value[1])
                    value, name = -float(value[0]) / max(weight, 1.0), f"{metric}_nll{way}"
                if not _numbers([value]):
                    skipped.add(f"{task}/{metric}")
                    continue
                item = f"{sample['doc_id']}-{str(sample['doc_hash'])[:8]}"
                rows.append(Row(name, item, float(value), weight, part=task))
    return rows, skipped


def _numbers(values: Any) -> bool:
    return all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)


def directions(
    rows: list[Row], higher: Mapping[str, Mapping[str, bool | None]]
) -> dict[str, Better]:
    """Which way each metric is better, by lm-eval's own statement."""
    found: dict[str, Better] = {}
    for row in rows:
        name = row.metric.split(",")[0]
        said = higher.get(row.part, {}).get(name.removesuffix("_nll"))
        way: Better = None if said is None else "higher" if said else "lower"
        if name.endswith("_nll"):
            way = "lower"
        found[f"{row.part}/{row.metric}"] = way
    return found


def plain(value: Any) -> Any:
    """Results as plain data: numbers, texts and mappings; what is neither becomes text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
