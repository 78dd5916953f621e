"""What every trainer of TRL's side needs: the model, the arguments, a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from cases import Case

Rows = Sequence[Mapping[str, Any]]


def torch_dtype(job: Mapping[str, Any]) -> Any:
    """Number format of the weights as loaded."""
    import torch

    pure = job["options"].get("dtype") == "bfloat16" and job["mode"] != "parity"
    return torch.bfloat16 if pure else torch.float32


def load_model(job: Mapping[str, Any], folder: Path, case: Case, *, head: bool = False) -> Any:
    """The policy both sides start from, as a person would load it for TRL."""
    import transformers
    from peft import PeftModel

    source = folder / "store" / "sft-000000" / "model"
    base = folder / "model" if case.adapter == "lora" else source
    kind = "AutoModelForSequenceClassification" if head else "AutoModelForCausalLM"
    more: dict[str, Any] = {"num_labels": 1} if head else {}
    if attention := job["options"].get("attention"):
        more["attn_implementation"] = attention
    model = getattr(transformers, kind).from_pretrained(base, dtype=torch_dtype(job), **more)
    if case.adapter == "lora" and not head:
        return PeftModel.from_pretrained(model, str(source), is_trainable=True)
    if head:
        model = with_head(model, source, case)
    return model


def with_head(model: Any, source: Path, case: Case) -> Any:
    """A sequence classifier with the case's adapter and the weights of its scalar head.

    alignlab's head also has a bias, which starts at zero and cancels in every difference of two
    scores.
    """
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    weight = load_file(source / "head.safetensors")["linear.weight"]
    with torch.no_grad():
        model.score.weight.copy_(weight)
    if case.adapter == "full":
        return model
    config = LoraConfig.from_pretrained(str(source))
    config.inference_mode, config.task_type = False, "SEQ_CLS"
    config.modules_to_save = ["score"]
    model = get_peft_model(model, config)
    state = load_file(source / "adapter_model.safetensors")
    state["base_model.model.score.weight"] = weight
    loaded: Any = set_peft_model_state_dict(model, state)
    missing = [name for name in loaded.missing_keys if "lora_" in name]
    if missing or loaded.unexpected_keys:
        raise SystemExit(f"the adapter does not fit: {missing or loaded.unexpected_keys}")
    return model


def tokenizer_of(folder: Path) -> Any:
    """The case's tokenizer of words."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model")


def arguments(job: Mapping[str, Any], case: Case, rows: int, scratch: str) -> dict[str, Any]:
    """Arguments that every trainer of a job gets; ``rows`` are the rows of one update."""
    import torch

    options = job["options"]
    default = bool(options.get("default"))
    per_device = min(int(options.get("rows") or 8), rows)
    if rows % per_device:
        raise SystemExit(f"{per_device} rows per device do not divide an update of {rows}")
    shared = {
        "output_dir": scratch,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,  # the losses are needed
        "max_steps": job.get("updates") or case.updates,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": rows // per_device,
        "learning_rate": options.get("learning_rate", case.learning_rate),
        "lr_scheduler_type": "constant",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": case.seed,
        "train_sampling_strategy": "sequential",  # the same rows in the same update
    }
    if not default:
        shared |= {"bf16": options["dtype"] != "float32", "gradient_checkpointing": False}
        shared |= {"dataloader_pin_memory": False}
    if job["mode"] == "parity":
        shared |= {"bf16": False, "gradient_checkpointing": False}
    return shared


def clock(record: measure.Record) -> Any:
    """A callback that notes the end of every optimizer step, its loss and gradient norm."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            record.step()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                record.losses.append(float(logs["loss"]))
                record.norms.append(float(logs["grad_norm"]))

    return Clock()
