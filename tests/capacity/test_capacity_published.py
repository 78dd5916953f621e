"""Estimates beside what others published, with the differences in storage counted, not waved away.

Sources: litgpt tutorials/resource-tables.md (A100 40 GB, bf16-true, Alpaca, up to 1,304 tokens a
row, LoRA of rank 8 on queries and values, no checkpointing); peft docs, accelerate/deepspeed.md
(Llama-2-70B, LoRA of rank 8 on all linear layers, ZeRO-3, 8 x H100 80 GB, 8 x 2,048 tokens a
device, checkpointing: 64 GB); the blog "Fine-tuning Llama 2 70B using PyTorch FSDP" (all weights,
16 x A100 80 GB); Rajbhandari et al. 2020 (ZeRO), section 3.1.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from capacity_cases import known, work

from alignlab.capacity.device import CUDA_RUNTIME, CUDA_SLACK, allocation
from alignlab.capacity.memory import Memory, Setting, phases
from alignlab.capacity.workload import Model, Update, Workload

GPU = allocation(False, "bfloat16")
GB, GIB = 1e9, 2**30
A100_40, CARD_80, CARD_48, CARD_24 = 39.4 * GIB, 79.1 * GIB, 44.4 * GIB, 23.5 * GIB


def training(model: Model, tokens: int, row: int = 2048, steps: int = 8) -> Workload:
    """Micro-batches of ``tokens`` tokens, several in a step, every token predicted."""
    step = Update(steps=1, tokens=steps * tokens, group=row, row=row, targets=1.0)
    return Workload(model, trained=1, update=step)


def widest(workload: Workload, setting: Setting) -> Memory:
    """Of training itself: loading is another moment."""
    found = [m for m in phases(workload, setting, GPU) if m.phase != "load"]
    return max(found, key=lambda m: m.total)


def allocated(memory: Memory) -> float:
    """What `torch.cuda.max_memory_allocated` counts."""
    return memory.total - memory.runtime - memory.overhead


@pytest.mark.parametrize(
    ("name", "rows", "published"),
    [
        ("meta-llama/Llama-2-7b-hf", 1, 21.30),
        ("meta-llama/Llama-2-7b-hf", 2, 29.07),
        ("meta-llama/Llama-2-13b-hf", 1, 38.12),
    ],
)
def test_lora_on_one_gpu_is_within_a_tenth_of_litgpt(
    name: str, rows: int, published: float
) -> None:
    model = known(name, rank=8, only=("q_proj", "v_proj"))
    found = widest(training(model, rows * 1304, row=1304), Setting(rows * 1304))
    # Here the residual stream, the embedding and the head are float32, there bfloat16.
    assert 1.0 < allocated(found) / GB / published < 1.10
    assert model.adapter == {32: 4_194_304, 40: 6_553_600}[model.dimensions.layers]


def test_what_ran_out_of_memory_there_does_not_fit_here() -> None:
    for name, rows in (("meta-llama/Llama-2-7b-hf", 4), ("meta-llama/Llama-2-13b-hf", 2)):
        model = known(name, rank=8, only=("q_proj", "v_proj"))
        assert widest(training(model, rows * 1304, row=1304), Setting(rows * 1304)).total > A100_40


@pytest.mark.parametrize(("card", "most"), [(CARD_24, 4096), (CARD_48, 32768), (CARD_80, 65536)])
def test_seven_billion_with_adapters_on_24_48_and_80_gb(card: float, most: int) -> None:
    # With checkpointing: 13.5 GB of weights stay, and a token keeps 32 · 4,096 · 4 bytes.
    model = known("huggyllama/llama-7b", rank=16, checkpointing=True)
    assert widest(training(model, most // 2), Setting(most // 2)).total < card
    assert widest(training(model, 4 * most), Setting(4 * most)).total > card


def test_seven_billion_in_full_on_eight_80_gb_with_zero_3_and_not_on_one() -> None:
    model = known("huggyllama/llama-7b", checkpointing=True)
    everything = training(model, 4096, steps=64)
    assert widest(everything, Setting(4096)).total > CARD_80  # 16 · 6.74e9 = 108 GB of states
    found = widest(everything, Setting(4096, processes=8, zero=3))
    assert found.total < CARD_80
    # 20 bytes a weight: DeepSpeed's copy of the weights is in float32 as they are
    states = found.weights + found.gradients + found.optimizer
    assert states == pytest.approx(20 * 6_738_415_616 / 8, rel=1e-6)


def test_seventy_billion_with_adapters_on_eight_80_gb_beside_the_docs_of_peft() -> None:
    model = known("meta-llama/Llama-2-70b-hf", rank=8, checkpointing=True)
    here = training(model, 8 * 2048, steps=32)
    found = widest(here, Setting(8 * 2048, processes=8, zero=3))
    # There 64 GB. Half of the residual stream is the difference of formats: 80 · 16,384 · 8,192 · 2
    other_format = 80 * 16384 * 8192 * 2
    theirs = allocated(found) - other_format
    assert 0.75 < theirs / GB / 64 < 1.05
    assert found.total < CARD_80
    assert widest(here, Setting(8 * 2048, processes=8)).total > CARD_80


def test_seventy_billion_in_full_needs_four_nodes_where_sixteen_bytes_need_two() -> None:
    model = known("meta-llama/Llama-2-70b-hf", checkpointing=True)
    here = training(model, 2048, steps=64)
    sixteen = widest(here, Setting(2048, processes=16, zero=3))
    states = sixteen.weights + sixteen.gradients + sixteen.optimizer
    assert states == pytest.approx(20 * model.dimensions.total / 16, rel=1e-6)
    # As published, FSDP with 16 bytes, its residual stream and gathered blocks in bfloat16, fits
    # into 16 x 80 GB; 20 bytes and float32 do not.
    other_format = states / 5 + 80 * 2048 * 8192 * 2 + 2 * model.dimensions.largest * 2
    assert allocated(sixteen) - other_format < CARD_80
    assert sixteen.total > CARD_80
    assert widest(here, Setting(2048, processes=32, zero=3)).total < CARD_80
    away = widest(here, Setting(2048, processes=16, zero=3, offload="optimizer"))
    assert away.total < CARD_80
    assert away.host * 8 < 1000 * GB  # a node's share: the blog's nodes have 1 TB


def test_beside_the_formula_of_the_zero_paper() -> None:
    # Section 3.1 and figure 1: 7.5 billion weights, 64 devices: 120 GB, 31.4, 16.6 and 1.9 GB of
    # states in 2 + 2 + 12 bytes. Here weights and gradients are 4 + 4, and the states 8 or, in
    # shares, 12: 120, 61.4, 31.9 and 2.3 GB.
    model = known("huggyllama/llama-7b")
    model = replace(model, dimensions=replace(model.dimensions, total=7_500_000_000))
    for zero, paper, here in ((0, 120, 120), (1, 31.4, 61.4), (2, 16.6, 31.9), (3, 1.9, 2.3)):
        found = widest(training(model, 2048, steps=256), Setting(2048, 64, zero))
        states = (found.weights + found.gradients + found.optimizer) / GB
        assert states == pytest.approx(here, abs=0.06)
        psi, n = 7.5, 64
        formula = [16 * psi, 4 * psi + 12 * psi / n, 2 * psi + 14 * psi / n, 16 * psi / n][zero]
        assert formula == pytest.approx(paper, abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [8, 64])
def test_beside_deepspeeds_own_estimators(processes: int) -> None:
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    d = known("huggyllama/llama-7b").dimensions
    nodes = processes // 8
    everything = work(
        known("huggyllama/llama-7b"),
        update=Update(steps=1, tokens=1 << 20, group=64, row=64, targets=0.0),
    )
    two, three = (widest(everything, Setting(64, processes, zero)) for zero in (2, 3))
    _, theirs = estimate_zero2_model_states_mem_needs(d.total, 8, nodes, cpu_offload=False)
    # Theirs is 2 N + 18 N / n, ours 4 N + 16 N / n.
    states = two.weights + two.gradients + two.optimizer
    assert states - theirs == pytest.approx(2 * d.total - 2 * d.total / processes, rel=1e-3)
    _, theirs, layer = estimate_zero3_model_states_mem_needs(
        d.total, d.largest, 8, nodes, cpu_offload=False, cpu_offload_params=False
    )
    # Theirs is 18 N / n and one layer in float32, ours 20 N / n, and a block with the next one.
    states = three.weights + three.gradients + three.optimizer
    assert states - (theirs - layer) == pytest.approx(2 * d.total / processes, rel=1e-3)
    assert three.buffers >= layer


def test_overheads_of_cuda_are_assumed_and_small() -> None:
    assert CUDA_RUNTIME < 2 * GIB
    assert 0 < CUDA_SLACK < 0.2
