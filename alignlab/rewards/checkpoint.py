"""A published reward model or classifier as a reward: any sequence-classification checkpoint.

Read with transformers' ``AutoModelForSequenceClassification``, so its own pooler and head score:
reward models such as Skywork's (a decoder, a chat template, one output), cross-encoders (a pair of
texts), sentiment classifiers (one text, several labels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from alignlab import interruption
from alignlab.errors import ConfigError, did_you_mean
from alignlab.models.identity import identity
from alignlab.models.load import resolve
from alignlab.rewards.reward import Meta, Texts, fingerprint
from alignlab.typed import Range

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class SequenceClassifier:
    """What a checkpoint's head gives to a completion after its prompt.

    ``text`` says what it reads: ``chat``, the prompt as the user's message and the completion as
    the assistant's, in the checkpoint's chat template; ``pair``, two texts as its tokenizer joins
    them; ``joined``, prompt and completion as one text; ``completion`` alone.

    Of one output the score is that output. Of several it is Σ_k p_k v_k with p = softmax of the
    outputs: ``values`` gives v by label, ``label`` is 1 for that label and 0 for all others.
    Earlier turns of a conversation are in the prompt's text, as for every reward of text.
    """

    path: str  # a local folder or a Hugging Face id
    revision: str | None
    text: Literal["chat", "pair", "joined", "completion"]
    label: str | None  # of several: the one whose probability is the score
    values: Mapping[str, float] | None  # of several: what each label is worth
    max_tokens: Annotated[int, Range(min=8)] | None  # of a row; None = what the model can take
    token_budget: Annotated[int, Range(min=1)]  # tokens of a forward pass; changes no score

    def __post_init__(self) -> None:
        if self.label is not None and self.values is not None:
            raise ConfigError("label and values: a score is one label's probability, or a mean.")

    @property
    def name(self) -> str:
        """Short name for tables."""
        return Path(self.path).name

    def score(self, prompts: Texts, completions: Texts, meta: Meta) -> np.ndarray:
        """Score every completion, float32 (R,)."""
        rows = self._rows(prompts, completions)
        found = np.zeros(len(rows), dtype=np.float32)
        for places in self._batches([len(row["input_ids"]) for row in rows]):
            interruption.check()
            found[places] = self._scores([rows[i] for i in places])
        return found

    def fingerprint(self) -> str:
        """Hash of the fields and of the checkpoint's files."""
        return fingerprint(self, 1, identity(self.path, self.revision))

    def _rows(
        self, prompts: Sequence[str], completions: Sequence[str]
    ) -> list[dict[str, list[int]]]:
        """Tokens of every row, its beginning cut where it is too long."""
        model, tokenizer = self._loaded
        texts: tuple[list[str], ...] = (list(completions),)
        special = True
        if self.text == "pair":
            texts = (list(prompts), list(completions))
        elif self.text == "joined":
            texts = ([p + c for p, c in zip(prompts, completions, strict=True)],)
        elif self.text == "chat":
            texts, special = (
                ([self._chat(p, c) for p, c in zip(prompts, completions, strict=True)],),
                False,
            )
        if not completions:
            return []
        encoded = tokenizer(
            *texts,
            add_special_tokens=special,
            truncation="only_first" if self.text == "pair" else True,
            max_length=self.max_tokens or _positions(model, tokenizer),
        )
        return [{k: v[i] for k, v in encoded.items()} for i in range(len(completions))]

    def _chat(self, prompt: str, completion: str) -> str:
        messages = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        return str(self._loaded[1].apply_chat_template(messages, tokenize=False))

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        """Rows of like length together, at most ``token_budget`` padded tokens each."""
        _, tokenizer = self._loaded
        found: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            width = lengths[found[-1][0]] if found else 0
            full = not found or (len(found[-1]) + 1) * width > self.token_budget
            if full or tokenizer.pad_token_id is None:
                found.append([i])
            else:
                found[-1].append(i)
        return found

    def _scores(self, rows: list[dict[str, list[int]]]) -> np.ndarray:
        import torch

        model, tokenizer = self._loaded
        inputs = (
            tokenizer.pad(rows, return_tensors="pt")
            if len(rows) > 1
            else {name: torch.tensor([ids]) for name, ids in rows[0].items()}
        )
        with torch.no_grad():
            logits = model(**{k: v.to(model.device) for k, v in inputs.items()}).logits.float()
        if self._worth is None:
            return np.asarray(logits[:, 0].cpu().numpy())
        worth = torch.tensor(self._worth, device=logits.device)
        return np.asarray((logits.softmax(-1) @ worth).cpu().numpy())

    @cached_property
    def _worth(self) -> list[float] | None:
        """Value of every label in the order of the outputs; None of a single one."""
        config: Any = self._loaded[0].config
        names = [str(config.id2label[i]) for i in range(config.num_labels)]
        asked = {self.label: 1.0} if self.label is not None else self.values
        if config.num_labels == 1:
            if asked is not None:
                raise ConfigError(
                    f"{self.path} has one output, which is the score; set label and values to null."
                )
            return None
        if asked is None:
            raise ConfigError(
                f"{self.path} has {len(names)} outputs ({', '.join(names)}): set label to the one "
                "whose probability is the score, or values to what each is worth."
            )
        for name in asked:
            if name not in names:
                known = ", ".join(names)
                raise ConfigError(
                    f"{self.path}: no label '{name}' (it has {known}).{did_you_mean(name, names)}"
                )
        if self.values is not None and len(asked) < len(names):
            left = ", ".join(name for name in names if name not in asked)
            raise ConfigError(f"values: {self.path} has more labels, which need a value: {left}.")
        return [float(asked.get(name, 0.0)) for name in names]

    @cached_property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The checkpoint, frozen, and its tokenizer.

        Raises:
            ConfigError: no such checkpoint, no trained head in it, or no chat template.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        folder = _folder(self.path, self.revision)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer.truncation_side = "left"
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if info["missing_keys"]:
            some = ", ".join(sorted(info["missing_keys"])[:3])
            raise ConfigError(
                f"{self.path}: no checkpoint of a trained classifier or reward model ({some} would "
                "be random). Train one on it with a reward stage."
            )
        if self.text == "chat" and not tokenizer.chat_template:
            raise ConfigError(
                f"text=chat: the tokenizer of {self.path} has no chat template; use pair or joined."
            )
        if tokenizer.pad_token_id is not None and model.config.pad_token_id is None:
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return _frozen(model, device), tokenizer


def _frozen(model: Any, device: str) -> Any:
    return model.requires_grad_(False).eval().to(device)


def _positions(model: Any, tokenizer: Any) -> int:
    from alignlab.models.encoders import positions_of

    config = model.config.get_text_config().to_dict()
    return min(positions_of(config), int(tokenizer.model_max_length))


def _folder(path: str, revision: str | None) -> Path:
    """Local folder of the checkpoint, fetched from the hub where it is not one."""
    try:
        return resolve(path, Path(), revision)
    except ConfigError as error:
        raise ConfigError(str(error).replace("backbone.path", "path", 1)) from error
