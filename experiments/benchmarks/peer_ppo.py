"""PPO of TRL 1.9.0, the last version that had one; runs in an environment of its own.

Four models as that trainer wants them: a policy with an adapter, a reference, a reward model and a
critic. As it ships: the reference is a model of its own and every parameter of the critic is
trained. Tuned: the reference is a second adapter of the policy (``ref_adapter_name``) and the
critic gets adapters of alignlab's rank, put in place with peft.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import measure
from cases import Case
from peer_setup import clock, load_model, tokenizer_of, torch_dtype

EPOCHS, MINIBATCHES = 2, 2  # as in ours.py


def main(
    job: Mapping[str, Any],
    folder: Path,
    case: Case,
    rows: Sequence[Mapping[str, Any]],
    answer: Path,
) -> None:
    """Train, or score given completions for parity."""
    record = measure.Record()
    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    record.imported()
    if job["mode"] == "parity":
        parity(job, folder, case, record, answer)
        return
    options = job["options"]
    default = bool(options.get("default"))
    per_device = min(int(options.get("rows") or 8), case.batch // MINIBATCHES)
    policy = load_model(job, folder, case)
    more: dict[str, Any] = {}
    reference = None
    if case.adapter == "lora" and not default:
        policy.load_adapter(str(adapter_of(folder)), adapter_name="ref", is_trainable=False)
        policy.set_adapter("default")
        more = {"model_adapter_name": "default", "ref_adapter_name": "ref"}
    else:
        reference = load_model(job, folder, case).eval()
    value = scalar_model(job, folder, case, adapters=case.adapter == "lora" and not default)
    data = [{"input_ids": rows[r]["prompt"]} for order in case.order for r in order]
    updates = job.get("updates") or case.updates
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            args=PPOConfig(
                output_dir=scratch,
                use_cpu=not torch.cuda.is_available(),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                bf16=default or options["dtype"] != "float32",
                gradient_checkpointing=default and torch.cuda.is_available(),
                per_device_train_batch_size=per_device,
                gradient_accumulation_steps=case.batch // per_device,
                num_mini_batches=MINIBATCHES,
                num_ppo_epochs=EPOCHS,
                total_episodes=updates * case.batch,
                num_sample_generations=0,
                local_rollout_forward_batch_size=min(64, case.batch),
                response_length=case.new_tokens,
                stop_token="eos",
                temperature=1.0,
                learning_rate=case.learning_rate,
                lr_scheduler_type="constant",
                adam_beta1=0.9,
                adam_beta2=0.95,
                weight_decay=0.0,
                kl_coef=0.05,
                seed=case.seed,
                **more,
            ),
            processing_class=left_padding(tokenizer_of(folder)),
            model=policy,
            ref_model=reference,
            reward_model=scalar_model(job, folder, case, adapters=False).eval(),
            value_model=value,
            train_dataset=Dataset.from_list(data),
            callbacks=[clock(record)],
        )
        trainer.train()
    record.losses = []  # of other samples: not to be compared
    record.write(answer, float(case.batch))


def left_padding(tokenizer: Any) -> Any:
    """Prompts are padded on the left, where sampling does not see it."""
    tokenizer.padding_side = "left"
    return tokenizer


def adapter_of(folder: Path) -> Path:
    """Adapter folder of the policy that both sides start from."""
    return folder / "store" / "sft-000000" / "model"


def scalar_model(job: Mapping[str, Any], folder: Path, case: Case, *, adapters: bool) -> Any:
    """Reward model or critic: a sequence classifier with the case's weights and scalar head.

    With ``adapters`` the adapter stays one and is trained, else it is merged into the weights.
    """
    import torch
    from peft import LoraConfig, PeftModel, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    source = folder / "store" / "reward-000000" / "model"
    base = folder / "model" if case.adapter == "lora" else source
    model = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch_dtype(job), num_labels=1
    )
    if case.adapter == "lora":
        config = LoraConfig.from_pretrained(str(source))
        config.inference_mode, config.task_type = False, None
    if case.adapter == "lora" and not adapters:
        model = PeftModel.from_pretrained(model, str(source), config=config).merge_and_unload()
    elif adapters:
        model = inject_adapter_in_model(config, model)
        state = load_file(source / "adapter_model.safetensors")
        state = {name.removeprefix("base_model.model."): x for name, x in state.items()}
        set_peft_model_state_dict(model, state)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name or name.startswith("score"))
    with torch.no_grad():
        model.score.weight.copy_(load_file(source / "head.safetensors")["linear.weight"])
    return model


def parity(
    job: Mapping[str, Any], folder: Path, case: Case, record: measure.Record, answer: Path
) -> None:
    """Log-probs, values and scores of given completions, by the models TRL would be given.

    The forward passes are the ones of TRL's trainer (``forward``, ``get_reward``).
    """
    import torch
    from trl.experimental.ppo.ppo_trainer import forward, get_reward

    fixed = json.loads((folder / "fixed.json").read_text(encoding="utf-8"))
    policy = load_model(job, folder, case).eval()
    critic = scalar_model(job, folder, case, adapters=case.adapter == "lora").eval()
    judge = scalar_model(job, folder, case, adapters=False).eval()
    for prompt, completion in zip(fixed["prompts"], fixed["completions"], strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        start = len(prompt)
        with torch.no_grad():
            logits = forward(policy, ids, case.pad).logits[:, start - 1 : -1].float()
            logps = logits.log_softmax(-1).gather(-1, ids[:, start:, None])
            values, _, _ = get_reward(critic, ids, case.pad, start)
            _, score, _ = get_reward(judge, ids, case.pad, start)
        record.losses += logps.flatten().tolist()
        record.losses += values[:, start - 1 : -1].flatten().float().tolist()
        record.losses += score.flatten().float().tolist()
    record.ends.append(measure.time.perf_counter())
    record.write(answer, 1.0)
