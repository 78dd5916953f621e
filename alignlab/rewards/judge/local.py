"""A language model of one's own as a judge: its likeliest label is the verdict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from alignlab import files, typed
from alignlab.annotations import Range
from alignlab.errors import ConfigError, DataError, did_you_mean
from alignlab.models.identity import identity
from alignlab.models.load import Adapter, BackboneConfig
from alignlab.rewards.classifier import store_cache
from alignlab.rewards.judge.judge import Heard, Question, Reply, Side, judge_fingerprint
from alignlab.rewards.judge.prompts import SIDES, JudgePrompt
from alignlab.run import Run, Store

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.data.template import Tokenization
    from alignlab.models.backbone import Backbone

TOGETHER = 32  # questions between two replies that are kept


@dataclass(frozen=True, kw_only=True)
class LocalJudge:
    """Judges by log P(label | task) of a causal language model: the highest label is the verdict.

    A label of several tokens counts with the sum of their log-probabilities. Equal highest values
    are a tie. With a chat template the task is a user message and the label the start of the
    assistant's; without one it is text that ends in the prompt's ``cue``. A question longer than
    the model's context gets no verdict.

    Small models name the answer shown first whatever it says. With ``balance`` an answer's score is
    the mean of its label's log-probability where it is shown first and where second (balanced
    position calibration, Wang et al. 2023, arXiv:2305.17926). Then both orders agree by
    construction, and their agreement proves nothing.
    """

    model: str | None  # as backbone.path: folder, hub id, wheel:smollm2 …; null = `run`
    revision: str | None  # hub revision
    run: str | None  # full name of a finished run that made a model; null = `model`
    store: str | None  # folder of finished runs; null = $ALIGNLAB_RUNS, else ./runs
    dtype: Literal["auto", "float32", "bfloat16"]
    balance: bool  # take away the preference for a position, as both orders together show it
    token_budget: Annotated[int, Range(min=1)]  # tokens of a forward pass; changes no verdict
    prompt: JudgePrompt

    def __post_init__(self) -> None:
        if self.model is not None and self.run is not None:
            raise ConfigError("judge.model and judge.run are both given; keep one of them.")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return f"{self.model or self.run} ({self.prompt.name})"

    @property
    def deterministic(self) -> bool:
        """Nothing is sampled."""
        return True

    @property
    def balanced(self) -> bool:
        """Whether the two orders of a match agree by construction."""
        return self.balance

    @property
    def remembered(self) -> bool:
        """A forward pass over a long question is dear."""
        return True

    def fingerprint(self) -> str:
        """Hash of the model's identity, of the number format and of the prompt."""
        made = self._finished.name if self.model is None else identity(self.model, self.revision)
        return judge_fingerprint(self, 1, made, self.dtype, self.balance, self.prompt)

    def answer(self, questions: Sequence[Question], heard: Heard) -> None:
        """Reply to the questions, some dozens at a time."""
        for start in range(0, len(questions), TOGETHER):
            part = list(questions[start : start + TOGETHER])
            swapped = [replace(q, first=q.second, second=q.first) for q in part]
            # Both orders of a match stand beside each other, so each is read once.
            shown = {_texts(q): q for q in (part + swapped if self.balance else part)}
            reads = dict(zip(shown, self._logps(list(shown.values())), strict=True))
            for index, (question, other) in enumerate(zip(part, swapped, strict=True), start):
                read, back = reads[_texts(question)], reads.get(_texts(other))
                if read.logps and (back is None or back.logps):
                    scores = read.logps if back is None else balanced(read.logps, back.logps)
                    heard(index, verdict(scores, read.tokens))
                else:
                    limit = _context(self._loaded[0].model_config)
                    heard(index, Reply("none", f"{read.tokens} tokens; the model reads {limit}"))

    def _logps(self, questions: Sequence[Question]) -> list[_Read]:
        """Log-probability of every label after every question, in nats."""
        import torch

        from alignlab.data.pack import flatten, group_tokens, pack

        backbone, tokenization = self._loaded
        groups = self._tokens(tokenization, questions)
        limit = _context(backbone.model_config)
        reads = [_Read((), group_tokens(g)) for g in groups]
        fitting = [i for i, read in enumerate(reads) if read.tokens <= limit]
        bins = pack([reads[i].tokens for i in fitting], self.token_budget)
        with torch.no_grad(), backbone.view("judge") as view:
            for members in bins:
                part = [fitting[m] for m in members]
                batch = flatten([groups[i] for i in part]).to(backbone.device)
                logps = view.logps(batch).double().cpu()
                lengths = [len(c) for i in part for c in groups[i].completions]
                sums = iter(float(piece.sum()) for piece in logps.split(lengths))
                for i in part:
                    found = tuple(next(sums) for _ in self.prompt.labels)
                    reads[i] = replace(reads[i], logps=found)
        return reads

    def _tokens(
        self, tokenization: Tokenization, questions: Sequence[Question]
    ) -> list[TokenGroup]:
        """The task as prompt and every label as a completion, without the end of turn."""
        from alignlab.data.group import PromptGroup

        labels = self.prompt.labels
        groups = []
        for question in questions:
            if tokenization.template is None:
                groups.append(
                    PromptGroup(self.prompt.plain(question), tuple(f" {x}" for x in labels))
                )
                continue
            system = self.prompt.system
            messages: list[dict[str, Any]] = [{"role": "system", "content": system}] * bool(system)
            messages.append({"role": "user", "content": self.prompt.render(question)})
            answers = tuple(({"role": "assistant", "content": label},) for label in labels)
            groups.append(PromptGroup(tuple(messages), answers))
        tokens = tokenization.groups(groups)
        bare = [replace(t, completions=tuple(c[:-1] for c in t.completions), masks=(), truncated=())
                for t in tokens]  # fmt: skip
        if any(len(c) == 0 for t in bare for c in t.completions):
            raise DataError(f"{self.name}: the tokenizer gives a label no token of its own.")
        return bare

    def backbone(self, model: str) -> BackboneConfig:
        """Configuration of the base model ``model``, of which nothing is trained."""
        return BackboneConfig(
            path=model,
            revision=self.revision,
            adapter=Adapter(rank=None, alpha=1.0, dropout=0.0, target_modules="all-linear"),
            dtype=self.dtype,
            layout="auto",
            gradient_checkpointing=False,
        )

    @cached_property
    def _finished(self) -> Run:
        root = Path(self.store or os.environ.get("ALIGNLAB_RUNS") or "runs").expanduser()
        if self.run is None:
            raise ConfigError(
                "judge.model and judge.run are null: name a model, or give the stage a run as its"
                " input `judge`."
            )
        found = {run.name: run for run in Store(root).runs()}
        if self.run not in found:
            raise ConfigError(
                f"No run '{self.run}' in {root.resolve()}.{did_you_mean(self.run, found)}"
            )
        if not found[self.run].done:
            raise ConfigError(f"{self.run} is not finished; run its study again first.")
        return found[self.run]

    @cached_property
    def _loaded(self) -> tuple[Backbone, Tokenization]:
        import torch

        from alignlab.data.template import Tokenization
        from alignlab.models.backbone import Backbone

        if self.model is None:
            config, source = self._of_run()
            cache = Store(self._finished.path.parent).cache
        else:
            config, source = self.backbone(self.model), None
            cache = store_cache()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        backbone = Backbone.load(replace(config, dtype=self.dtype), cache, device)
        backbone.add("judge", source=source, trainable=False)
        return backbone, Tokenization(backbone.tokenizer, None, None)

    def _of_run(self) -> tuple[BackboneConfig, Path | None]:
        """Base model of the run, and the folder of what was trained on it."""
        run = self._finished
        made_by = Store(run.path.parent).find(str(run.record.get("chosen") or run.name))
        stated = (files.read_json(made_by.path / "config.json") or {}).get("backbone")
        if stated is None:  # a pretrained model has no base: it is one
            return self.backbone(str(run.model_dir)), None
        return typed.build(BackboneConfig, stated, f"{made_by.name}: backbone"), run.model_dir


@dataclass(frozen=True)
class _Read:
    """What the model made of one question; no log-probabilities where it was too long."""

    logps: tuple[float, ...]  # of the labels: first, second and maybe tie
    tokens: int


def _texts(question: Question) -> tuple[str, str, str, str | None]:
    return question.prompt, question.first, question.second, question.reference


def balanced(logps: Sequence[float], swapped: Sequence[float]) -> tuple[float, ...]:
    """Mean score of each answer over both orders: of its label where it is shown first, second.

    ``logps`` are of the labels (first, second and maybe tie), ``swapped`` the same with the two
    answers exchanged.
    """
    exchanged = (swapped[1], swapped[0], *swapped[2:])
    return tuple((a + b) / 2 for a, b in zip(logps, exchanged, strict=True))


def verdict(scores: Sequence[float], tokens: int) -> Reply:
    """Reply from the scores of the labels (first, second and maybe tie)."""
    said = " ".join(f"{score:.4f}" for score in scores)
    best = [side for side, s in zip(SIDES, scores, strict=False) if s == max(scores)]
    side: Side = best[0] if len(best) == 1 else "tie"
    return Reply(side, said, tokens_in=tokens)


def _context(config: Any) -> int:
    """Most tokens that the model was made for; without a statement there is no limit."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
