"""alignlab's side: a file of preference rows to checked, packed tokens.

``python ours.py JOB``, started by ``run.py``.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]


def source_of(job: dict[str, Any]) -> Any:
    """The rows as a source of preference data, held-out rows in a file of their own."""
    from alignlab.data.sources.file import File
    from alignlab.data.sources.source import SPLITS

    return File(
        path=job["rows_file"],
        validation_path=job["held_out_file"],
        test_path=None,
        format="auto",
        style=job["style"],
        turns="all",
        fields={},
        weights={},
        split_by=None,
        validation=0.0,
        test=0.0,
        unlabeled=0.0,
        sft=0.5,
        share=True,
        allow_test=False,
        limit=dict.fromkeys(SPLITS),
    )


def main() -> None:
    """Prepare, pack, and answer with times, counts and a sample of ids."""
    import packing
    from rows import answer, sample
    from transformers import AutoTokenizer

    from alignlab.data.pack import pack
    from alignlab.data.prepared import prepare
    from alignlab.data.template import Tokenization

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    Path(job["ready"]).touch()  # imports and the tokenizer are there
    began = time.perf_counter()
    prepared = prepare(
        source_of(job),
        "preference",
        Tokenization(tokenizer, None, None),
        Path(job["scratch"]),
        need="pairs",
        held_out=("validation",),
        workers=job["processes"] if job["processes"] > 1 else 0,
    )
    middle = time.perf_counter()
    bins = pack(prepared.sizes(), job["budget"])
    end = time.perf_counter()
    wanted = set(sample(job["rows"], job["sample"]))
    ids = {}
    for group in prepared:
        line = int(group.meta["place"].rpartition(" ")[2]) - 1
        if line in wanted:
            ids[line] = [group.prompt.tolist(), *(c.tolist() for c in group.completions)]
    answer(
        Path(job["answer"]),
        {
            "rows": len(prepared),
            "tokens": prepared.stats.tokens,
            "seconds": end - began,
            "pack_seconds": end - middle,
            "efficiency": prepared.stats.tokens / (job["budget"] * len(bins)),
            "packing": packing.table(prepared.sizes()),
            "findings": Counter(f.code for f in prepared.findings),
            "prompt_lengths": prepared.stats.prompt_lengths,
            "completion_lengths": prepared.stats.completion_lengths,
            "ids": ids,
        },
    )


if __name__ == "__main__":
    main()
