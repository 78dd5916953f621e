"""Estimates beside what others published: the table of README.md, and what is compared.

python experiments/plan_accuracy/published.py          writes the table into README.md

Sources: litgpt tutorials/resource-tables.md (A100 40 GB, bf16-true, Alpaca, up to 1,304 tokens a
row, LoRA of rank 8 on queries and values, no checkpointing); peft docs, accelerate/deepspeed.md
(Llama-2-70B, LoRA of rank 8 on all linear layers, ZeRO-3, 8 x H100 80 GB, 8 x 2,048 tokens a
device, checkpointing); the blog "Fine-tuning Llama 2 70B using PyTorch FSDP" (all weights, 16 x
A100 80 GB); Rajbhandari et al. 2020 (ZeRO), section 3.1 and figure 1 (7.5 billion weights).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alignlab.capacity.device import allocation
from alignlab.capacity.memory import Memory, Setting, phases
from alignlab.capacity.workload import Model, Update, Workload
from alignlab.models.dimensions import Dimensions
from alignlab.models.memory import llama_shapes
from alignlab.models.published import PUBLISHED

README = Path(__file__).resolve().with_name("README.md")
BEGIN, END = "<!-- published: written by published.py -->", "<!-- end of published -->"
GB, GIB = 1e9, 2**30
CARD = 79.1 * GIB  # of an 80 GB card, as torch sees it
LITGPT = "https://github.com/Lightning-AI/litgpt/blob/main/tutorials/resource-tables.md"
PEFT = "https://huggingface.co/docs/peft/accelerate/deepspeed"
BLOG = "https://huggingface.co/blog/ram-efficient-pytorch-fsdp"
ZERO = "https://arxiv.org/abs/1910.02054"
LLAMA_7, LLAMA_13, LLAMA_70 = (f"meta-llama/Llama-2-{size}-hf" for size in ("7b", "13b", "70b"))


def known(name: str, *, rank: int = 0, only: tuple[str, ...] = (), again: bool = False) -> Model:
    """A published model in bfloat16; adapters on all linear layers or those named in ``only``."""
    stated = PUBLISHED[name]
    shapes = llama_shapes(stated)
    dimensions = Dimensions.of(shapes, stated)
    adapted = [
        shape
        for tensor, shape in shapes.items()
        if len(shape) == 2 and ".layers." in tensor and (not only or any(o in tensor for o in only))
    ]
    own = rank * sum(map(sum, adapted)) if rank else None
    count = len(adapted) // dimensions.layers if rank else 0
    return Model(dimensions, own, rank, count, "bfloat16", again)


def widest(model: Model, tokens: int, setting: Setting, row: int = 2048) -> Memory:
    """Widest moment of training, several micro-batches of ``tokens`` tokens in a step."""
    step = Update(1, 64 * setting.processes * tokens, group=row, row=row, targets=1.0)
    work = Workload(model, trained=1, update=step)
    found = [m for m in phases(work, setting, allocation(False, "bfloat16")) if m.phase != "load"]
    return max(found, key=lambda m: m.total)


def allocated(memory: Memory) -> float:
    """GB as `torch.cuda.max_memory_allocated` counts them."""
    return (memory.total - memory.runtime - memory.overhead) / GB


def lora(name: str, rows: int) -> float:
    """Adapters on queries and values, ``rows`` rows of 1,304 tokens, on one GPU."""
    model = known(name, rank=8, only=("q_proj", "v_proj"))
    return allocated(widest(model, rows * 1304, Setting(rows * 1304), row=1304))


def seventy() -> tuple[float, float]:
    """Adapters on 70 billion in shares of eight, and the part that is the residual's format."""
    model = known(LLAMA_70, rank=8, again=True)
    found = widest(model, 8 * 2048, Setting(8 * 2048, processes=8, zero=3))
    d = model.dimensions
    return allocated(found), d.layers * 8 * 2048 * d.hidden * 2 / GB


def nodes() -> str:
    """What all weights of 70 billion fit into."""
    model = known(LLAMA_70, again=True)

    def fits(setting: Setting) -> str:
        return "fits" if widest(model, 2048, setting).total <= CARD else "does not"

    plain = [f"{n} cards: {fits(Setting(2048, n, 3))}" for n in (16, 32)]
    return "; ".join([*plain, f"16 with offload: {fits(Setting(2048, 16, 3, 'optimizer'))}"])


def states() -> list[float]:
    """GB of states of 7.5 billion weights on 64 devices, ZeRO 0 to 3."""
    model = known("huggyllama/llama-7b")
    model = replace(model, dimensions=replace(model.dimensions, total=7_500_000_000))
    found = [widest(model, 2048, Setting(2048, 64, zero)) for zero in range(4)]
    return [(m.weights + m.gradients + m.optimizer) / GB for m in found]


def table() -> str:
    """The rows, with what is computed here."""
    whole, formats = seventy()
    rows = [
        ("configuration", "published", "here", "why"),
        ("---",) * 4,
        (
            f"Llama-2-7B, LoRA q v rank 8, 1,304 tokens, A100 40 GB ([litgpt]({LITGPT}))",
            "21.3 GB",
            f"{lora(LLAMA_7, 1):.1f} GB",
            "residual stream, embedding and head are float32 here, bfloat16 there",
        ),
        ("the same, 2 × 1,304 tokens", "29.1 GB", f"{lora(LLAMA_7, 2):.1f} GB", ""),
        (
            "Llama-2-13B, LoRA, 1,304 tokens",
            "38.1 GB",
            f"{lora(LLAMA_13, 1):.1f} GB",
            "both run out of 40 GB with twice the tokens",
        ),
        (
            "Llama-2-70B, LoRA rank 8, ZeRO-3, 8 × H100, 16,384 tokens a device "
            f"([peft docs]({PEFT}))",
            "64 GB",
            f"{whole:.1f} GB",
            f"{formats:.0f} GB of the residual stream are the format",
        ),
        (
            f"Llama-2-70B, all weights, 16 × A100 80 GB ([HF blog]({BLOG}))",
            "fits (FSDP, 16 bytes a weight)",
            nodes(),
            "DeepSpeed keeps a float32 copy of float32 weights: 20 bytes",
        ),
        (
            f"7.5B, states on 64 devices, ZeRO 0 / 1 / 2 / 3 ([ZeRO]({ZERO}), fig. 1)",
            "120 / 31.4 / 16.6 / 1.9 GB",
            " / ".join(f"{x:.1f}" for x in states()) + " GB",
            "weights and gradients 4 + 4 bytes, there 2 + 2",
        ),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Write the table into README.md, and show it."""
    text = README.read_text(encoding="utf-8")
    head, tail = text[: text.index(BEGIN)], text[text.index(END) :]
    README.write_text(f"{head}{BEGIN}\n{table()}\n{tail}", encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
