"""Pretraining: a small language model with a vocabulary of its own, from text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from alignlab.data.batch import Batch
from alignlab.data.gate.limits import Limits
from alignlab.engine.optimizer import Optimizer
from alignlab.models.load import BackboneConfig
from alignlab.spec import Spec, build
from alignlab.stages.stage import Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.data.group import TokenGroup
    from alignlab.engine.distributed import Engine
    from alignlab.run import Run


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A Llama-type decoder (pre-norm, RoPE, SwiGLU, grouped-query attention, tied embeddings)."""

    vocabulary: Annotated[int, Range(min=300)]
    hidden: Annotated[int, Range(min=8)]
    intermediate: Annotated[int, Range(min=8)]
    layers: Annotated[int, Range(min=1)]
    heads: Annotated[int, Range(min=1)]
    key_value_heads: Annotated[int, Range(min=1)]
    context: Annotated[int, Range(min=16)]


@dataclass(frozen=True, kw_only=True)
class Pretrain(Stage):
    """Next-token likelihood over documents, each cut into windows of ``window`` tokens.

    The byte-level BPE vocabulary is trained on the same documents. A document starts with BOS and
    ends with EOS; a later window of a long document starts with its own last token of the window
    before, so that every token is predicted exactly once.
    """

    kind: ClassVar[str] = "pretrain"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {}

    data: Spec
    gate: Limits
    architecture: Architecture
    dtype: Literal["auto", "float32", "bfloat16"]
    window: Annotated[int, Range(min=8)]
    batch: Batch
    tokens: Annotated[int, Range(min=1)]
    documents: Annotated[int, Range(min=1)] | None
    optimizer: Optimizer
    evaluate_every: Annotated[int, Range(min=0)]
    evaluate_rows: Annotated[int, Range(min=1)]

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Train vocabulary and model; the result is an ordinary Hugging Face folder."""
        from alignlab.data.gate.texts import check_texts
        from alignlab.engine.loop import train
        from alignlab.stages.budget import fit_offline
        from alignlab.stages.finish import finish_training
        from alignlab.stages.session import OfflineWork, heed, keep_card, open_backbone
        from alignlab.stages.sft import completion_tokens, loss, mean_nll

        run = engine.workers().own(run)
        data = build(self.data)
        documents = data.load("pretrain")[: self.documents]
        held_out_documents = data.load("pretrain_validation")
        keep_card(data, run, self.gate)
        others = {"pretrain_validation": held_out_documents}
        heed(check_texts(documents, others, self.gate), run)
        texts = [g.completions[0] for g in documents]
        held_out_texts = [g.completions[0] for g in held_out_documents]
        folder = run.path / "initial"
        if engine.workers().is_main:
            initialise(folder, texts, self.architecture, self.seed)
        engine.workers().barrier()
        backbone = open_backbone(self.backbone_of(folder), run, engine, self.seed, shared=True)
        backbone.add("policy", source=None, trainable=True)
        groups = windows(backbone.tokenizer, texts, self.window)
        held_out = windows(backbone.tokenizer, held_out_texts, self.window)[: self.evaluate_rows]
        engine = fit_offline(engine, backbone, "policy", groups, self.batch, self.optimizer, run)
        work = OfflineWork(
            groups, self.batch, self.seed, engine, "policy", count=completion_tokens, loss_of=loss
        )
        if isinstance(self.batch, int):
            steps = max(1, round(self.tokens / (self.batch * mean_length(groups))))
        else:
            steps = work.steps_of(self.tokens / (len(groups) * mean_length(groups)))
        result = train(
            work,
            backbone,
            ["policy"],
            optimizer=self.optimizer,
            steps=steps,
            run=run,
            engine=engine,
            seed=self.seed,
            evaluate=lambda: {"nll": mean_nll(backbone, "policy", held_out, engine)},
            evaluate_every=self.evaluate_every,
        )
        finish_training(run, backbone, "policy", result, work.counts(result.steps))
        nll = mean_nll(backbone, "policy", held_out, engine)
        run.update_record(
            label=self.label or "pretrained",
            packing=work.packing(result.steps),
            corpus={"documents": len(texts), "tokens": sum(len(g.completions[0]) for g in groups)},
            summary={"validation_nll": nll},
        )

    def backbone_of(self, folder: Path) -> BackboneConfig:
        """The fresh model in ``folder``, all of it trained."""
        from alignlab.models.load import Adapter

        return BackboneConfig(
            path=str(folder),
            revision=None,
            dtype=self.dtype,
            layout="auto",
            gradient_checkpointing=False,
            adapter=Adapter(rank=None, alpha=1.0, dropout=0.0, target_modules="all-linear"),
        )

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """6 FLOPs per parameter and token."""
        from alignlab.capacity.workload import Model, Workload
        from alignlab.models.dimensions import Dimensions
        from alignlab.models.memory import llama_shapes
        from alignlab.stages.estimate import update_of

        shape = self.architecture
        stated = {
            "vocab_size": shape.vocabulary, "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.key_value_heads,
            "tie_word_embeddings": True,
        }  # fmt: skip
        sizes = Dimensions.of(llama_shapes(stated), stated)
        update = update_of(self.batch, self.tokens, group=self.window, prompt=0, completions=1)
        model = Model(sizes, None, 0, 0, self.dtype, checkpointing=False)
        return Estimate(
            params_total=sizes.total,
            params_trained=sizes.total,
            tokens=self.tokens,
            flops=6.0 * sizes.total * self.tokens,
            workload=Workload(
                model,
                trained=1,
                update=update,
                states=self.optimizer.state_bytes(sizes.matrices / sizes.total),
            ),
        )


def initialise(folder: Path, texts: Sequence[str], shape: Architecture, seed: int) -> None:
    """Write tokenizer and freshly drawn weights, once (a resumed run finds them)."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if folder.exists():
        return
    tokenizer = train_tokenizer(texts, shape.vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    temporary = folder.with_suffix(".part")
    shutil.rmtree(temporary, ignore_errors=True)
    LlamaForCausalLM(config).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    temporary.rename(folder)


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Byte-level BPE with its own pad, BOS and EOS tokens; ``tokenizer(text)`` adds BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|bos|>", "<|eos|>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    core.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", special.index("<|bos|>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )


def windows(tokenizer: Any, texts: Sequence[str], window: int) -> list[TokenGroup]:
    """Documents as one-completion groups: the first token of a window is its prompt."""
    import numpy as np

    from alignlab.data.group import DEMONSTRATION, TokenGroup

    groups: list[TokenGroup] = []
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    for document, ids in enumerate(encoded):
        tokens = np.asarray([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], dtype=np.int32)
        for start in range(0, len(tokens) - 1, window):
            piece = tokens[start : start + window + 1]
            groups.append(
                TokenGroup(
                    prompt=piece[:1],
                    completions=(piece[1:],),
                    verdict=DEMONSTRATION,
                    row=len(groups),
                    id=f"{document}:{start}",
                    truncated=(bool(piece[-1] != tokenizer.eos_token_id),),
                    meta={},
                )
            )
    return groups


def mean_length(groups: Sequence[TokenGroup]) -> float:
    """Mean number of completion tokens per group."""
    return sum(len(g.completions[0]) for g in groups) / len(groups)
