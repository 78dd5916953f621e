"""TRL's side: the same file through `DPOTrainer`'s own preparation.

``python peer.py JOB``, started by ``run.py``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]


def model_of(vocabulary: int) -> Any:
    """A random model of a few thousand weights: the trainer wants one and preparation does not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
    )


def main() -> None:
    """Load the rows and build the trainer, which prepares them; answer with times and ids."""
    from datasets import Dataset, load_dataset
    from rows import answer, sample
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(job["tokenizer"])
    config = DPOConfig(
        output_dir=job["scratch"],
        dataset_num_proc=job["processes"] if job["processes"] > 1 else None,
        max_length=None,  # nothing to drop: one pass less over the rows
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    policy, reference = model_of(len(tokenizer)), model_of(len(tokenizer))

    def trainer(data: Any) -> Any:
        return DPOTrainer(policy, reference, config, train_dataset=data, processing_class=tokenizer)

    one = {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " b", "rejected": " c"}
    began = time.perf_counter()
    trainer(Dataset.from_list([one] * 8))  # everything that is done once, and no rows to speak of
    once = time.perf_counter() - began
    Path(job["ready"]).touch()
    began = time.perf_counter()
    data = load_dataset("json", data_files=job["rows_file"], split="train")
    loaded = time.perf_counter()
    table = trainer(data).train_dataset
    end = time.perf_counter()
    ids = {
        line: [table[line][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
        for line in sample(job["rows"], job["sample"])
    }
    answer(
        Path(job["answer"]),
        {
            "rows": len(table),
            "seconds": end - began,
            "load_seconds": loaded - began,
            "trainer_without_rows_seconds": once,
            "ids": ids,
        },
    )


if __name__ == "__main__":
    main()
