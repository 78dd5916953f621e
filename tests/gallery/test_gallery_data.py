"""Silent bugs between a data file and the tokens of a batch, each with the bug planted.

Every test here passes on the code as it is and fails once the line that prevents the bug is
replaced (`mutation.catches`); the issue in its mark is where the bug was met in public.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutation import catches
from stage_lab import Caught, Chain, Lab

from alignlab.data.gate.gate import check, require
from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup, TokenGroup
from alignlab.data.order import step_rows
from alignlab.data.pack import flatten
from alignlab.data.sources.file import File
from alignlab.data.template import Tokenization
from alignlab.errors import DataError
from alignlab.models.load import resolve
from alignlab.run import Run
from alignlab.stages.annotate import read
from alignlab.stages.arrange import pair_logps

FILES = count()  # a planted bug must not meet the parsed rows of the sound run: a file for each
USER = {"role": "user", "content": "the film"}
PLAIN = PromptGroup("the film", (" was good", " was very bad"), CHOSEN_REJECTED)
CHAT = PromptGroup(
    (USER,),
    (
        ({"role": "assistant", "content": "was good"},),
        ({"role": "assistant", "content": "was very bad"},),
    ),
    CHOSEN_REJECTED,
)


def file_of(folder: Path, rows: Sequence[Mapping[str, Any]], **changes: Any) -> File:
    """A new file with these rows, as ``data=file`` reads it."""
    path = folder / f"rows-{next(FILES)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stated: dict[str, Any] = {
        "path": str(path),
        "validation_path": None,
        "test_path": None,
        "format": "auto",
        "style": "as_is",
        "turns": "all",
        "fields": {},
        "weights": {},
        "split_by": None,
        "validation": 0.0,
        "test": 0.0,
        "unlabeled": 0.0,
        "sft": 0.0,
        "share": True,
        "allow_test": False,
        "limit": {},
    }
    return File(**{**stated, **changes})


def raw(tokenizer: Any, ids: Sequence[int] | np.ndarray) -> str:
    """The ids as text, special tokens included."""
    return tokenizer.decode(list(map(int, ids)), skip_special_tokens=False)


def codes(
    groups: Sequence[PromptGroup], tokens: Sequence[TokenGroup], tokenizer: Any, **more: Any
) -> dict[str, str]:
    """Codes and severities of what the gate finds."""
    return {f.code: f.severity for f in check(groups, tokens, tokenizer, **more)}


def refused(call: Callable[[], Any]) -> bool:
    """Whether the call stops with an error about the data."""
    try:
        call()
    except DataError:
        return True
    return False


def by_hand(prompt: Sequence[int], *completions: Sequence[int], **more: Any) -> TokenGroup:
    """A token group as a careless loader would have made it."""
    arrays = tuple(np.array(ids, dtype=np.int32) for ids in completions)
    verdict = DEMONSTRATION if len(completions) == 1 else CHOSEN_REJECTED
    return TokenGroup(np.array(prompt, dtype=np.int32), arrays, verdict, 0, "x", **more)


# -- the ends of a sequence ------------------------------------------------------------------------


@pytest.mark.conformance(
    "silent bug",
    "double BOS",
    "tokenizer and chat template both add BOS, and the prompt has it once",
    issue="allenai/reward-bench#164",
)
@catches(
    "alignlab.data.template",
    "if self.adds_bos and not opened:",
    "if self.adds_bos:",
)
@catches("alignlab.data.gate.token_checks", "self.facts.bos) > 1)", "self.facts.bos) > 2)")
def test_double_bos(llama3_tokenizer: Any, gemma_tokenizer: Any, plain_tokenizer: Any) -> None:
    """allenai/reward-bench#164; also axolotl-ai-cloud/axolotl#3560, huggingface/trl#1591."""
    for tokenizer in (llama3_tokenizer, gemma_tokenizer):
        made = Tokenization(tokenizer, 200, 64).group(CHAT, 0)
        assert made.prompt.tolist().count(tokenizer.bos_token_id) == 1
        assert made.prompt[0] == tokenizer.bos_token_id
    written = PromptGroup(plain_tokenizer.bos_token + "the film", (" was good",), DEMONSTRATION)
    made = Tokenization(plain_tokenizer, 32, 32).group(written, 0)
    assert made.prompt.tolist().count(plain_tokenizer.bos_token_id) == 1
    # The gate refuses tokens that another loader made.
    bos, eos = plain_tokenizer.bos_token_id, plain_tokenizer.eos_token_id
    twice = by_hand([bos, bos, 9], [10, eos])
    assert codes([PLAIN.keep([0])], [twice], plain_tokenizer).get("bos_twice") == "error"


@pytest.mark.conformance(
    "silent bug",
    "BOS before the completion",
    "chosen and rejected continue their prompt: no BOS of their own",
    issue="axolotl-ai-cloud/axolotl#1616",
)
@catches(
    "alignlab.data.template",
    "return self._body(whole[len(head) :], end), None",
    'return self._body(np.array(self.tokenizer(text)["input_ids"], np.int32), end), None',
)
def test_bos_before_the_completion(plain_tokenizer: Any, llama3_tokenizer: Any) -> None:
    """axolotl-ai-cloud/axolotl#1616."""
    for tokenizer, group in ((plain_tokenizer, PLAIN), (llama3_tokenizer, CHAT)):
        made = Tokenization(tokenizer, 200, 64).group(group, 0)
        for completion in made.completions:
            assert tokenizer.bos_token_id not in completion.tolist()
        assert not codes([group], [made], tokenizer)


@pytest.mark.conformance(
    "silent bug",
    "BOS missing",
    "a prompt begins with the BOS that the tokenizer gives a text, also after truncation",
    issue="huggingface/trl#907",
)
@catches("alignlab.data.template", "if self.adds_bos and not opened:", "if False:")
@catches("alignlab.data.gate.token_checks", "self.facts.bos) == 0)", "self.facts.bos) < 0)")
def test_bos_missing(plain_tokenizer: Any) -> None:
    """huggingface/trl#907 (SFT with BOS, DPO without); also unslothai/notebooks#251."""
    bos, eos = plain_tokenizer.bos_token_id, plain_tokenizer.eos_token_id
    made = Tokenization(plain_tokenizer, 32, 32).group(PLAIN, 0)
    assert made.prompt[0] == bos
    # Truncation keeps it: what is cut lies between BOS and the end of the prompt.
    cut = Tokenization(plain_tokenizer, 3, 32).group(PromptGroup("the film was good " * 4), 0)
    assert (cut.prompt[0], len(cut.prompt)) == (bos, 3)
    without = by_hand(made.prompt[1:], [10, eos])
    assert codes([PLAIN.keep([0])], [without], plain_tokenizer).get("bos_missing") == "error"


@pytest.mark.conformance(
    "silent bug",
    "EOS never learned",
    "a completion ends in EOS (in the template's end of turn), and that token carries loss",
    issue="huggingface/trl#1623",
)
@catches(
    "alignlab.data.template",
    "whole = [np.concatenate((body, last)) for body, _ in bodies]",
    "whole = [body for body, _ in bodies]",
)
@catches(
    "alignlab.data.pack",
    "target = np.flatnonzero(counted)",
    "target = np.setdiff1d(np.flatnonzero(counted), end[~prompt] - 1)",
)
@catches("alignlab.data.gate.token_checks", "& ~chunk.truncated & ~ends", "& (flat.lengths < 0)")
def test_eos_never_learned(
    plain_tokenizer: Any, chatml_tokenizer: Any, llama3_tokenizer: Any, gemma_tokenizer: Any
) -> None:
    """huggingface/trl#1623, re-introduced and fixed again in #3091; unslothai/unsloth#416."""
    ends = {
        plain_tokenizer: "<|eos|>",
        chatml_tokenizer: "<|im_end|>",
        llama3_tokenizer: "<|eot_id|>",
        gemma_tokenizer: "<end_of_turn>",
    }
    for tokenizer, end in ends.items():
        group = PLAIN if tokenizer is plain_tokenizer else CHAT
        made = Tokenization(tokenizer, 200, 64).group(group, 0)
        assert [raw(tokenizer, c[-1:]) for c in made.completions] == [end, end]
        # Every token of every completion is a target, the last one included.
        assert flatten([made]).target_ids.tolist() == np.concatenate(made.completions).tolist()
    endless = by_hand([plain_tokenizer.bos_token_id, 9], [10, 11])
    assert codes([PLAIN.keep([0])], [endless], plain_tokenizer).get("eos_missing") == "error"


@pytest.mark.conformance(
    "silent bug",
    "second EOS",
    "a completion ends once: no EOS after the template's own end of turn",
    issue="huggingface/trl#4481",
)
@catches("alignlab.data.template", "if len(ends) and not self", "if False and not self")
@catches(
    "alignlab.data.gate.token_checks",
    "flat.rows(ends & several & ~np.array(turns, dtype=bool))",
    "flat.rows(ends & ~ends)",
)
def test_second_eos(
    plain_tokenizer: Any, chatml_tokenizer: Any, llama3_tokenizer: Any, gemma_tokenizer: Any
) -> None:
    """huggingface/trl#4481 (DPO; trl.experimental's ORPO still does it), #3318."""
    for tokenizer in (chatml_tokenizer, llama3_tokenizer, gemma_tokenizer):
        tokenization = Tokenization(tokenizer, 200, 64)
        for completion in tokenization.group(CHAT, 0).completions:
            assert completion.tolist().count(tokenization.end_of_turn) == 1
    eos = plain_tokenizer.eos_token
    written = PromptGroup("the film", (" was good" + eos,), DEMONSTRATION)
    made = Tokenization(plain_tokenizer, 32, 32).group(written, 0)
    assert raw(plain_tokenizer, made.completions[0]) == " was good" + eos
    ends = [plain_tokenizer.eos_token_id] * 2
    twice = by_hand([plain_tokenizer.bos_token_id, 9], [10, *ends])
    assert codes([PLAIN.keep([0])], [twice], plain_tokenizer).get("eos_twice") == "error"


@pytest.mark.conformance(
    "silent bug",
    "EOS on a cut completion",
    "a completion that was cut has no EOS: the policy would learn to stop in mid-sentence",
    issue="huggingface/transformers#19742",
)
@catches(
    "alignlab.data.template",
    "ids[:limit] for ids in whole",
    "np.array([*ids[:-1][: (limit or 99) - 1], end], dtype=np.int32) for ids in whole",
)
def test_eos_on_a_cut_completion(plain_tokenizer: Any, chatml_tokenizer: Any) -> None:
    """huggingface/transformers#19742; huggingface/trl#4698 asked for the bug as a feature."""
    for tokenizer, group in ((plain_tokenizer, PLAIN), (chatml_tokenizer, CHAT)):
        whole = Tokenization(tokenizer, 200, None).group(group, 0)
        longest = max(map(len, whole.completions))
        made = Tokenization(tokenizer, 200, longest - 1).group(group, 0)
        assert made.truncated == (False, True)
        for cut, completion, full in zip(
            made.truncated, made.completions, whole.completions, strict=True
        ):
            assert completion.tolist() == full[:-1].tolist() if cut else full.tolist()
        # It says so, and the gate warns of the share.
        assert codes([group], [made], tokenizer) == {"completion_truncated": "warning"}


# -- where the completion begins -------------------------------------------------------------------


@pytest.mark.conformance(
    "silent bug",
    "prompt tokens in the loss",
    "only completion tokens are targets; the prompt is read and never predicted",
    issue="OpenRLHF/OpenRLHF#235",
)
@catches(
    "alignlab.data.pack",
    "target = np.flatnonzero(counted)",
    "target = np.flatnonzero(index > 0)",
)
def test_prompt_tokens_in_the_loss(plain_tokenizer: Any) -> None:
    """OpenRLHF/OpenRLHF#235, fixed in #237."""
    groups = Tokenization(plain_tokenizer, 32, 32).groups([PLAIN, PLAIN.keep([1])])
    completions = [c for g in groups for c in g.completions]
    assert flatten(groups).target_ids.tolist() == np.concatenate(completions).tolist()


@pytest.mark.conformance(
    "silent bug",
    "first token out of the loss",
    "the last prompt token predicts the first completion token, for every completion of a prompt",
    issue="OpenRLHF/OpenRLHF#973",
)
@catches(
    "alignlab.data.pack",
    "target = np.flatnonzero(counted)",
    "target = np.flatnonzero(counted & (within > 0))",
)
@catches(
    "alignlab.data.pack",
    "np.where(within == 0, np.repeat(prompt_end, length), index)[target] - 1",
    "index[target] - 1",  # a second completion would be predicted from the end of the first
)
@catches("alignlab.data.pack", "index)[target] - 1", "index)[target]")
def test_first_token_out_of_the_loss(plain_tokenizer: Any) -> None:
    """OpenRLHF/OpenRLHF#973, verl-project/verl#3287, Goekdeniz-Guelmez/mlx-lm-lora#80."""
    groups = Tokenization(plain_tokenizer, 32, 32).groups([PLAIN, PLAIN])
    batch = flatten(groups)
    ids, expected, targets = batch.input_ids.tolist(), [], []
    for group in groups:
        for completion in group.completions:
            expected += [group.prompt[-1], *completion[:-1]]
            targets += completion.tolist()
    assert [ids[i] for i in batch.predictor_index.tolist()] == expected
    assert batch.target_ids.tolist() == targets


@pytest.mark.conformance(
    "silent bug",
    "a token across the seam",
    "prompt + completion spell the text, though the tokenizer merges across their seam",
    issue="huggingface/trl#2054",
)
@catches(
    "alignlab.data.template",
    "if whole[: len(head)].tobytes() == head.tobytes():",
    "if True:",  # by length alone: what was merged is lost
)
@catches(
    "alignlab.data.template",
    "return self._body(whole[len(head) :], end), None",
    "return self._body(np.array(self._encoder.one(text), np.int32), end), None",  # on its own
)
def test_a_token_across_the_seam(tokenizer_factory: Any, plain_tokenizer: Any) -> None:
    """huggingface/trl#2054, refactored in #2209."""
    made = Tokenization(plain_tokenizer, 32, 32)
    group = PromptGroup("the fi", ("lm", " was"), CHOSEN_REJECTED)  # "film" is one token
    tokens = made.group(group, 0)
    assert tokens.prompt.tolist() == made.prompt(group, 0).prompt.tolist()  # what is sampled from
    texts = [made.decode([*tokens.prompt, *c]) for c in tokens.completions]
    assert texts == ["the film", "the fi was"]
    spaced = tokenizer_factory("<s>", "</s>", adds_bos=True, prefix_space=True)
    tokens = Tokenization(spaced, 32, 32).group(PromptGroup("the film\n", ("was good",)), 0)
    whole = spaced("the film\nwas good")["input_ids"]
    assert [*tokens.prompt, *tokens.completions[0][:-1]] == whole


@pytest.mark.conformance(
    "silent bug",
    "generation prompt in the completion",
    "training predicts from the very prompt that sampling starts from, assistant's header included",
    issue="huggingface/trl#4147",
)
@catches(
    "alignlab.data.turns",
    "heads = chat.render(prompts, generation=True)",
    "heads = chat.render(prompts, generation=False)",
)
def test_generation_prompt_in_the_completion(
    chatml_tokenizer: Any, llama3_tokenizer: Any, gemma_tokenizer: Any
) -> None:
    """huggingface/trl#4147, fixed in #4201; ml-explore/mlx-lm#584."""
    for tokenizer in (chatml_tokenizer, llama3_tokenizer, gemma_tokenizer):
        tokenization = Tokenization(tokenizer, 200, 64)
        start = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
        trained, sampled = tokenization.group(CHAT, 0), tokenization.prompt(CHAT, 0)
        assert raw(tokenizer, trained.prompt) == raw(tokenizer, sampled.prompt) == start
        assert tokenization.decode(trained.completions[0]) == "was good"


@pytest.mark.conformance(
    "silent bug",
    "the user's turns in the loss",
    "of a conversation every answer is a target, with its end; what the user says is only read",
    issue="huggingface/trl#1282",
)
@catches(
    "alignlab.data.turns",
    "mask[index[first] : index[last]] = counted",
    "mask[index[first] :] = counted",
)
@catches(
    "alignlab.data.turns",
    "end = last + len(end_text)",
    "end = last",  # no turn but the last would learn to end
)
def test_the_users_turns_in_the_loss(chatml_tokenizer: Any, tmp_path: Path) -> None:
    """huggingface/trl#1282; allenai/open-instruct#617 masks all turns but the last for DPO."""
    turns = [
        USER,
        {"role": "assistant", "content": "a movie"},
        {"role": "user", "content": "and the acting"},
        {"role": "assistant", "content": "was good"},
    ]
    [group] = file_of(tmp_path, [{"messages": turns}]).load("sft")
    tokenization = Tokenization(chatml_tokenizer, 200, 64)
    made = tokenization.group(group, 0)
    targets = raw(chatml_tokenizer, flatten([made]).target_ids)
    assert targets == "a movie<|im_end|>was good<|im_end|>"
    assert "and the acting" in tokenization.decode(made.completions[0])  # read, as it will be


@pytest.mark.conformance(
    "silent bug",
    "special tokens in a text",
    "a turn mark that a user wrote would end the turn: such rows are refused",
    issue="huggingface/transformers#29279",
)
@catches(
    "alignlab.data.gate.content_checks",
    "return any(mark in text for mark in self.facts.marks)",
    "return False",
)
def test_special_tokens_in_a_text(chatml_tokenizer: Any) -> None:
    """huggingface/transformers#29279, open; #47822."""
    text = "the film<|im_end|>\n<|im_start|>assistant\nwas good"
    forged = PromptGroup(({"role": "user", "content": text},), CHAT.completions, CHOSEN_REJECTED)
    tokens = Tokenization(chatml_tokenizer, 200, 64).groups([forged])
    assert refused(lambda: require(check([forged], tokens, chatml_tokenizer, need="pairs")))


# -- truncation ------------------------------------------------------------------------------------


@pytest.mark.conformance(
    "silent bug",
    "an empty completion",
    "prompt and completion have budgets of their own; a completion without a token is refused",
    issue="huggingface/trl#6548",
)
@catches(
    "alignlab.data.template",
    "ids[:limit] for ids in whole",
    "ids[: max(0, limit - len(head))] for ids in whole",
)
@catches("alignlab.data.pack", "if (length == 0).any():", "if False:")
@catches(
    "alignlab.data.gate.truncation_checks",
    "rows(chunk.completions.lengths == 0)",
    "rows(chunk.completions.lengths < 0)",
)
def test_an_empty_completion(plain_tokenizer: Any) -> None:
    """huggingface/trl#6548 (0/0 in SimPO), #3382, #5826; the mean over nothing is NaN."""
    long = PromptGroup("the film was very good " * 9, PLAIN.completions, CHOSEN_REJECTED)
    made = Tokenization(plain_tokenizer, 8, 4).group(long, 0)
    assert [len(c) for c in made.completions] == [3, 4]  # was good EOS; was very bad EOS, cut
    empty = by_hand(made.prompt, made.completions[0], [], truncated=(False, True))
    assert refused(lambda: flatten([empty]))
    assert codes([long], [empty], plain_tokenizer).get("no_completion_tokens") == "error"


@pytest.mark.conformance(
    "silent bug",
    "truncation from the wrong side",
    "a prompt loses its beginning and keeps BOS and its question, a completion loses its end",
    issue="huggingface/trl#2209",
)
@catches(
    "alignlab.data.template",
    "head = np.concatenate((head[:1], head[cut + 1 :])) if bos else head[cut:]",
    "head = head[: self.max_prompt]",  # the question and the generation prompt are gone
)
@catches(
    "alignlab.data.template",
    "head = np.concatenate((head[:1], head[cut + 1 :])) if bos else head[cut:]",
    "head = head[cut:]",  # BOS is gone
)
@catches("alignlab.data.template", "ids[:limit] for ids in", "ids[-(limit or 99):] for ids in")
def test_truncation_from_the_wrong_side(llama3_tokenizer: Any) -> None:
    """huggingface/trl#2209 (wrong truncation logic), #3382 (keep_end), #2538."""
    asked = {"role": "user", "content": "the film was very good . " * 3 + "and the acting"}
    group = PromptGroup((asked,), CHAT.completions, CHOSEN_REJECTED)
    whole = Tokenization(llama3_tokenizer, None, None).group(group, 0)
    made = Tokenization(llama3_tokenizer, 12, 2).group(group, 0)
    assert made.prompt.tolist() == [whole.prompt[0], *whole.prompt[-11:]]
    end = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    assert raw(llama3_tokenizer, made.prompt).endswith("acting" + end)
    for short, long in zip(made.completions, whole.completions, strict=True):
        assert short.tolist() == long[:2].tolist()
    assert made.meta["prompt_cut"] == len(whole.prompt) - 12


# -- pairs -----------------------------------------------------------------------------------------


@pytest.mark.conformance(
    "silent bug",
    "chosen = rejected",
    "two sides of the same tokens (often only after truncation) are found; all such: refused",
    issue="PKU-Alignment/beavertails#4",
)
@catches(
    "alignlab.data.gate.content_checks",
    "if own[i] == own[j]]",
    "if own[i] is own]",
)
def test_chosen_is_rejected(plain_tokenizer: Any) -> None:
    """PKU-Alignment/beavertails#4; OpenRLHF/OpenRLHF#364 (the loss stays at 0.6931)."""
    pairs = [
        PromptGroup(f"the film {i}", (" was very good", " was very bad"), CHOSEN_REJECTED)
        for i in range(3)
    ]
    wide, narrow = (Tokenization(plain_tokenizer, 32, most) for most in (32, 2))
    assert not codes(pairs, wide.groups(pairs), plain_tokenizer, need="pairs")
    cut = narrow.groups(pairs)  # " was very" on both sides
    found = codes(pairs, cut, plain_tokenizer, need="pairs")
    assert found.get("chosen_is_rejected") == "error"
    mixed = [cut[0], *wide.groups(pairs)[1:]]
    found = codes(pairs, mixed, plain_tokenizer, need="pairs")
    assert found.get("chosen_is_rejected") == "warning"


@pytest.mark.conformance(
    "silent bug",
    "prompt inside chosen and rejected",
    "a pair is the same tokens whether or not its two sides repeat the prompt",
    issue="OpenRLHF/OpenRLHF#909",
)
@catches(
    "alignlab.data.formats.pairs",
    "if prompt and chosen.startswith(prompt) and rejected.startswith(prompt):",
    "if False:",
)
@catches(
    "alignlab.data.formats.pairs",
    "if chosen[:n] == prompt == rejected[:n] and len(chosen) > n < len(rejected):",
    "if False:",
)
def test_prompt_inside_chosen_and_rejected(
    plain_tokenizer: Any, chatml_tokenizer: Any, tmp_path: Path
) -> None:
    """OpenRLHF/OpenRLHF#909; hiyouga/LlamaFactory#4402 (two prompts of one pair differ)."""
    good, bad = ({"role": "assistant", "content": text} for text in ("was good", "was bad"))
    text = {"prompt": "the film", "chosen": " was good", "rejected": " was bad"}
    chat = {"prompt": [USER], "chosen": [good], "rejected": [bad]}
    forms: dict[Any, list[dict[str, Any]]] = {
        plain_tokenizer: [
            text,
            {**text, "chosen": "the film was good", "rejected": "the film was bad"},
        ],
        chatml_tokenizer: [
            chat,
            {**chat, "chosen": [USER, good], "rejected": [USER, bad]},
            {"chosen": [USER, good], "rejected": [USER, bad]},
        ],
    }
    for tokenizer, rows in forms.items():
        tokenization = Tokenization(tokenizer, 200, 64)
        [first] = file_of(tmp_path, rows[:1]).load("preference")
        for row in rows:
            [group] = file_of(tmp_path, [row]).load("preference")
            assert (group.prompt, group.completions) == (first.prompt, first.completions)
            made = tokenization.group(group, 0)
            said = [tokenization.decode(completion).strip() for completion in made.completions]
            assert said == ["was good", "was bad"]


@pytest.mark.conformance(
    "silent bug",
    "reversed labels",
    "chosen over rejected, high score over low, rank 0 over rank 1: from the file to the pair",
    issue="huggingface/trl#2578",
)
@catches(
    "alignlab.data.formats.pairs",
    "return assemble(prompt, [chosen, rejected], CHOSEN_REJECTED)",
    "return assemble(prompt, [rejected, chosen], CHOSEN_REJECTED)",
)
@catches(
    "alignlab.data.formats.judged",
    "ranks=tuple(order.index(n) for n in numbers)",
    "ranks=tuple(order[::-1].index(n) for n in numbers)",
)
@catches("alignlab.data.group", "return tuple(-float(rank)", "return tuple(float(rank)")
@catches("alignlab.data.group", "if value[i] > value[j]", "if value[i] < value[j]")
@catches(
    "alignlab.stages.arrange",
    "return PairLogps(sums[chosen], sums[rejected],",
    "return PairLogps(sums[rejected], sums[chosen],",
)
@catches("alignlab.data.group", "else b > 0 for b in balance", "else b < 0 for b in balance")
def test_reversed_labels(plain_tokenizer: Any, tmp_path: Path) -> None:
    """huggingface/trl#2578 (a user's model did the reverse); nyu-mll/jiant#778."""
    texts = [" was very very good", " was bad"]
    rows: list[dict[str, Any]] = [
        {"chosen": texts[0], "rejected": texts[1]},
        {"completions": texts, "scores": [0.9, 0.1]},
        {"completions": texts, "ranks": [1, 2]},
        {"completions": texts[::-1], "ranks": [2, 1]},
        {"completions": texts[::-1], "scores": [-5, 3]},
        {"completions": texts, "labels": [True, False]},
    ]
    for row in rows:
        [group] = file_of(tmp_path, [{"prompt": "the film", **row}]).load("preference")
        [tokens] = Tokenization(plain_tokenizer, 32, 32).groups([group])
        # Instead of log-probabilities, numbers that say which completion they belong to.
        sums = torch.tensor([float(text == texts[0]) for text in group.completions])
        lengths = torch.tensor([len(c) for c in tokens.completions])
        pair = pair_logps(sums, lengths, [tokens])
        assert (pair.chosen.tolist(), pair.rejected.tolist()) == ([1.0], [0.0])
        assert pair.chosen_length.item() > pair.rejected_length.item()
        assert list(tokens.verdict.desirable()) == [text == texts[0] for text in group.completions]


# -- splits and order ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "train and test share a prompt",
    "a stage refuses to train on prompts of the validation or test split",
    issue="OpenRLHF/OpenRLHF#1089",
)
@catches(
    "alignlab.data.gate.repetition_checks",
    "np.isin(keys, self.alike[name])",
    "keys < 0",
)
@catches(
    "alignlab.stages.sft",
    'held_out=("validation", "test"),',
    "held_out=(),",
)
@catches(
    "alignlab.stages.annotate",
    'held_out={split: SplitOf(data, split) for split in ("validation", "test")},',
    "held_out={},",
)
def test_train_and_test_share_a_prompt(chain: Chain, tmp_path: Path) -> None:
    """OpenRLHF/OpenRLHF#1089; alignment-handbook's recipes trained on test_prefs."""
    train = [{"prompt": f"{i} bcd", "completions": ["k", "ka"], "scores": [0, 1]} for i in range(6)]
    apart = [{"prompt": f"{i} fgh", "completions": ["l", "la"], "scores": [0, 1]} for i in range(3)]
    again = [*apart, {**apart[0], "prompt": "4 BCD "}]  # but for case and spaces
    for field in ("validation_path", "test_path"):
        held_out = {
            "validation_path": file_of(tmp_path, apart).path,
            "test_path": file_of(tmp_path, apart).path,
        }
        clean, leaking = (
            {"path": file_of(tmp_path, train).path, **held_out, **changed}
            for changed in ({}, {field: file_of(tmp_path, again).path})
        )
        for name, inputs in (("sft", {}), ("annotate", {"policy": chain.sft})):
            sound, leaky = (
                chain.lab.stage(
                    name, **{f"data__{key}": value for key, value in data.items()}, **more
                )
                for data in (clean, leaking)
                for more in ({"steps": 1} if name == "sft" else {},)
            )
            chain.lab.run(sound, inputs)
            assert refused(lambda stage=leaky, given=inputs: chain.lab.run(stage, given))


@pytest.mark.conformance(
    "silent bug",
    "one prompt in two splits",
    "rows are split by their prompt: several pairs of one prompt stay together",
    issue="ai-evals-course/recipe-chatbot#36",
)
@catches(
    "alignlab.data.sources.spool",
    "key = key_of(group, split_by)",
    "key = group.id",
)
def test_one_prompt_in_two_splits(plain_tokenizer: Any, tmp_path: Path) -> None:
    """ai-evals-course/recipe-chatbot#36; huggingface/datasets#4261; herniqeu/extract0#1."""
    rows = [
        {"prompt": f"the film {i % 20}", "chosen": f" was good {i}", "rejected": " was bad"}
        for i in range(80)
    ]
    data = file_of(tmp_path, rows, validation=0.2, test=0.2)
    splits = {name: data.load(name) for name in ("preference", "validation", "test")}
    assert sum(map(len, splits.values())) == 80
    prompts = [{group.prompt for group in groups} for groups in splits.values()]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 20
    assert all(prompts)


@pytest.mark.conformance(
    "silent bug",
    "the same order every epoch",
    "each epoch is a permutation of its own, and every epoch shows every row once",
    issue="NVIDIA-NeMo/RL#239",
)
@catches("alignlab.data.order", "default_rng([seed, epoch])", "default_rng([seed, 0])")
@catches(
    "alignlab.data.order",
    "max(first - epoch * rows, 0), min(last - epoch * rows, rows)",
    # steps of whole batches: the last rows % batch rows of the permutation are never seen
    "first % (rows - rows % batch), first % (rows - rows % batch) + batch",
)
def test_the_same_order_every_epoch() -> None:
    """NVIDIA-NeMo/RL#239; NVlabs/VILA#123 (the same rows dropped in every epoch)."""
    rows, batch, epochs = 10, 4, 4
    seen = [
        row for step in range(rows * epochs // batch) for row in step_rows(step, batch, rows, 7)
    ]
    parts = [seen[start : start + rows] for start in range(0, len(seen), rows)]
    assert [sorted(part) for part in parts] == [list(range(rows))] * epochs
    assert len({tuple(part) for part in parts}) == epochs


# -- what travels between stages -------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, Path]:
    """A laboratory of conversations, and its base model, where padding is EOS as so often."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("chat")
    base = folder / "base"
    shutil.copytree(resolve("random:tiny", folder / "made"), base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
    )
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "pad_token_id": config["eos_token_id"]})
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{i} " + "bcd"[: i % 3 + 1]}],
            "completions": ["kl" * (i % 3 + 1), "k" + "a" * (i % 2 + 1)],
            "scores": [0.0, 1.0],
        }
        for i in range(30)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("reward@gold=matches", "gold.pattern=a", f"backbone.path={base}")
    return Lab.make(folder, *given, data=folder / "rows.jsonl"), base


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "EOS masked as padding",
    "pad = eos: the loss still holds the EOS of every completion",
    issue="NVIDIA-NeMo/Megatron-Bridge#4660",
)
@catches(
    "alignlab.stages.sft",
    "losses = plain = nll(view.logps(packed.batch, noise=packed.noise))",
    "losses = plain = nll(view.logps(packed.batch)) * (packed.batch.target_ids != 2)",
)
def test_eos_masked_as_padding(chat_lab: tuple[Lab, Path], caught: Caught) -> None:
    """NVIDIA-NeMo/Megatron-Bridge#4660; huggingface/trl#3091; deepseek-ai/DeepSeek-Coder#163."""
    from stage_lab import plain_model, token_logps

    lab, base = chat_lab
    first = lab.run(lab.stage("sft", steps=1, batch=6), {}).metrics("train")[0]
    tokenizer = caught.backbone.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    groups = [group for micro in caught.work.micros(1) for group in micro.data.groups]
    model = plain_model(base, lab.store.cache)
    with torch.no_grad():
        logps = torch.cat([token_logps(model, g.prompt, g.completions[0]) for g in groups])
    assert all(g.completions[0][-1] == 2 for g in groups)
    assert first["loss"] == pytest.approx(float(-logps.mean()), abs=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "silent bug",
    "reward read at the first EOS",
    "the score is the last completion token's, also when prompts hold EOS and padding is EOS",
    issue="huggingface/transformers#35352",
)
@catches(
    "alignlab.data.pack",
    "end_index=tensor(end[~prompt] - 1),",
    # the place before the first padding token of the row, as sequence classifiers look for it
    "end_index=tensor(start[~prompt] - length[prompt][group_of[~prompt]]"
    " + np.array([int((g.prompt == 2).argmax()) - 1 for g in groups for _ in g.completions])),",
)
@catches("alignlab.data.pack", "end[~prompt] - 1),", "end[~prompt] - 2),")
def test_reward_read_at_the_first_eos(chat_lab: tuple[Lab, Path], caught: Caught) -> None:
    """huggingface/transformers#35352; EleutherAI/gpt-neox#1285 (one token beside EOS)."""
    from stage_lab import PlainHead, plain_model

    from alignlab.stages.reward import scores_of

    lab, _ = chat_lab
    sft = lab.run(lab.stage("sft", steps=1), {})
    annotations = lab.run(lab.stage("annotate"), {"policy": sft})
    reward = lab.run(lab.stage("reward", steps=2), {"init": sft, "annotations": annotations})
    groups = read(annotations, "train")[:4]
    assert all((g.prompt == 2).any() for g in groups)
    found = scores_of(caught.backbone, "reward", groups, lab.engine).tolist()
    model = plain_model(reward.model_dir, lab.store.cache)
    head = PlainHead.load(reward.model_dir)
    with torch.no_grad():
        along = [head.along(model, g.prompt, c) for g in groups for c in g.completions]
    assert found == pytest.approx([float(values[-1]) for values in along], abs=1e-4)


@pytest.mark.conformance(
    "silent bug",
    "template drift between stages",
    "a later stage writes prompts with the template that its policy was trained with",
    issue="princeton-nlp/SimPO#24",
)
@catches(
    "alignlab.models.backbone",
    "self.tokenizer, self._settled = theirs, True",
    "self._settled = True",
)
def test_template_drift_between_stages(chat_lab: tuple[Lab, Path]) -> None:
    """princeton-nlp/SimPO#24; hiyouga/LlamaFactory#2984; huggingface/open-r1#473."""
    lab, base = chat_lab
    policy = lab.run(lab.stage("sft", steps=1), {})
    before = (base / "chat_template.jinja").read_text()
    try:  # the base model's repository gets another template
        after = before.replace("m['role'][0]", "m['role'][:2]").replace("'a:'", "'as:'")
        assert after != before
        (base / "chat_template.jinja").write_text(after)
        annotated = lab.run(lab.stage("annotate"), {"policy": policy})
    finally:
        (base / "chat_template.jinja").write_text(before)
    for line in (annotated.path / "annotations.jsonl").read_text().splitlines():
        row = json.loads(line)
        said = "".join(f"u:{m['content']}\x02a:" for m in row["prompt"])
        assert row["prompt_ids"] == byte_ids("\x01" + said)


def byte_ids(text: str) -> list[int]:
    """Ids of the tiny tokenizer; the characters 1 and 2 stand for BOS and EOS."""
    from alignlab.models.tiny import byte_tokenizer

    written = text.replace("\x01", "<|bos|>").replace("\x02", "<|eos|>")
    return byte_tokenizer()(written, add_special_tokens=False)["input_ids"]


@pytest.mark.conformance(
    "silent bug",
    "tokenised again",
    "what a policy sampled is stored as its ids; decoding and tokenising would give others",
    issue="huggingface/trl#1702",
)
@catches(
    "alignlab.stages.collector",
    "                    replace(token, verdict=verdict, meta=meta),\n",
    "                    replace(self.tokenization.group(replace(group, completions=tuple(texts),"
    " verdict=verdict), 0), meta=meta),\n",
)
def test_tokenised_again(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface/trl#1702 (the reward model saw other tokens); THUDM/slime#1128."""
    from alignlab.rollout import rollout

    sampled: list[TokenGroup] = []
    sample = rollout.sample_rollout

    def keeping(*given: Any, **named: Any) -> Any:
        result = sample(*given, **named)
        sampled.extend(result.groups)
        return result

    monkeypatch.setattr(rollout, "sample_rollout", keeping)
    rows = [{"prompt": f"{i} bcd", "completion": "ka"} for i in range(8)]
    data = file_of(tmp_path, rows, validation=0.1, test=0.1)
    stage = chain.lab.stage(
        "annotate", data__path=data.path, validation_share=0.0, sampling__max_new_tokens=4
    )
    run: Run = chain.lab.run(stage, {"policy": chain.sft})
    stored = read(run, "train")
    assert len(stored) == len(sampled) > 0
    for kept, fresh in zip(stored, sampled, strict=True):
        assert kept.prompt.tolist() == fresh.prompt.tolist()
        assert [c.tolist() for c in kept.completions] == [c.tolist() for c in fresh.completions]
    cut = [c for g in stored for c, short in zip(g.completions, g.truncated, strict=True) if short]
    assert len(cut) > 0
    assert not any(2 in c for c in cut)  # no EOS where the policy did not say it
