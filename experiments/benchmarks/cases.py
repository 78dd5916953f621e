"""What both sides are given: the same weights, the same token ids in the same order, one folder.

A case is made once, by alignlab's own tokenisation, and then read by processes that do not know of
each other. Token ids travel as words (``t17 t5 <eos>``) with a tokenizer of one word per id, so
that trainers which insist on text get exactly these ids, whatever they do with text.

::

    <case>/case.json      sizes, hyperparameters, and which rows every optimizer step sees
      groups.jsonl        {"prompt": ids, "completions": [ids, …]}, the rows
      model/              the base model with the tokenizer of words
      store/              alignlab's view of the same: an SFT run (adapter and scalar head, or all
                          weights) and an annotate run, both finished
      rows.jsonl          prompt and completion as words, for stages that read text
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from alignlab.data.group import PromptGroup, TokenGroup
    from alignlab.models.load import BackboneConfig

MODELS = {"smollm2": "wheel:smollm2", "reviews_lm": "package:reviews_lm", "tiny": "random:tiny"}
PAIRWISE = ("dpo", "ipo", "simpo")
ONLINE = ("grpo", "ppo")
WORKS = ("dpo", "reward_k4", "reward_k9", "kto", "sft", "grpo", "sampling", "ppo", "study")
EXTRA = ("ipo", "simpo")
MAX_PROMPT, MAX_COMPLETION = 512, 256  # conf/tokens/dialogue.yaml


@dataclass(frozen=True)
class Size:
    """How much of a work is done: prompt groups per update, updates (the first is not timed)."""

    batch: int
    updates: int
    new_tokens: int = 0  # of every sampled completion, at most
    group: int = 1  # sampled completions per prompt


SIZES: dict[str, dict[str, Size]] = {
    "smollm2": {
        "dpo": Size(8, 6),
        "reward_k4": Size(4, 5),
        "reward_k9": Size(2, 4),
        "kto": Size(4, 6),
        "sft": Size(32, 5),
        "grpo": Size(4, 4, new_tokens=64, group=8),
        "sampling": Size(64, 2, new_tokens=128),
        "ppo": Size(16, 3, new_tokens=48),
    },
    "reviews_lm": {
        "dpo": Size(32, 8),
        "reward_k4": Size(16, 8),
        "reward_k9": Size(8, 8),
        "kto": Size(32, 8),
        "sft": Size(64, 8),
        "grpo": Size(16, 6, new_tokens=48, group=8),
        "sampling": Size(128, 2, new_tokens=64),
        "ppo": Size(64, 4, new_tokens=48),
    },
    "tiny": {
        "dpo": Size(4, 4),
        "reward_k4": Size(2, 4),
        "reward_k9": Size(2, 4),
        "kto": Size(4, 4),
        "sft": Size(8, 4),
        "grpo": Size(2, 3, new_tokens=12, group=8),
        "sampling": Size(12, 2, new_tokens=24),
        "ppo": Size(8, 3, new_tokens=12),
    },
}


@dataclass(frozen=True)
class Case:
    """Everything that both sides must agree on; ``case.json`` holds exactly this."""

    work: str
    model: str
    adapter: str  # lora or full
    data: str
    batch: int
    updates: int
    new_tokens: int
    group: int
    seed: int
    eos: int
    pad: int
    stop: list[int]  # ids that end a sampled completion (sampling alone)
    order: list[list[int]]  # rows of every update
    learning_rate: float
    beta: float = 0.1
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name, and the key of the row in results.json."""
        return f"{self.work}-{self.model}-{self.adapter}-{self.data}"


def load(folder: Path) -> tuple[Case, list[dict[str, Any]]]:
    """Read a case and its rows. Needs nothing but the standard library and numpy."""
    case = Case(**json.loads((folder / "case.json").read_text(encoding="utf-8")))
    with (folder / "groups.jsonl").open(encoding="utf-8") as file:
        return case, [json.loads(line) for line in file]


def fixed_completions(
    case: Case, rows: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts of the first update, each with G completions of the data, of differing lengths."""
    pool = [row["completions"][0] for row in rows]
    given = []
    for place, row in enumerate(case.order[0]):
        parts = [pool[(place * case.group + k) % len(pool)] for k in range(case.group)]
        shortened = [
            [*part[: case.new_tokens - 1][: 3 + 5 * k], case.eos] for k, part in enumerate(parts)
        ]
        given.append((rows[row]["prompt"], shortened))
    return given


def words(ids: Sequence[int], eos: int) -> str:
    """Token ids as words; the tokenizer of the case's model folder reads them back."""
    return " ".join("<eos>" if i == eos else f"t{i}" for i in ids)


def size_of(work: str, model: str) -> Size:
    """Size of a work; the relatives of DPO have DPO's."""
    return SIZES[model]["dpo" if work in EXTRA else work]


def make(
    root: Path,
    work: str,
    *,
    model: str,
    adapter: str,
    cache: Path,
    data_dir: Path | None,
    size: Size | None = None,
    seed: int = 0,
) -> Path:
    """Make the folder of a case under ``root``, once; returns it."""
    size = size or size_of(work, model)
    data = data_for(work, model)
    case = Case(
        work=work,
        model=model,
        adapter=adapter,
        data=data,
        **asdict(size),
        seed=seed,
        eos=0,
        pad=0,
        stop=[],
        order=[],
        learning_rate=1e-4 if adapter == "lora" else 1e-5,
    )
    folder = root / case.name
    if (folder / "case.json").is_file():
        old, _ = load(folder)
        if all(getattr(old, k) == v for k, v in {**asdict(size), "seed": seed}.items()):
            return folder
        shutil.rmtree(folder)
    building = folder.with_name(f".{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    _fill(building, case, cache, data_dir)
    building.replace(folder)
    return folder


def data_for(work: str, model: str) -> str:
    """Which data a work uses: long dialogues and problems for a real model, passages for small."""
    if model == "tiny":
        return "random"
    if model == "reviews_lm":
        return "reviews"
    return {"sft": "mixed", "grpo": "gsm8k", "sampling": "gsm8k", "ppo": "reviews"}.get(work, "hh")


def _fill(folder: Path, case: Case, cache: Path, data_dir: Path | None) -> None:
    from transformers import AutoTokenizer

    from alignlab.data.order import step_rows
    from alignlab.models.load import resolve

    base = resolve(MODELS[case.model], cache)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = case.batch * (1 if case.work == "sampling" else case.updates)
    groups = _token_groups(case, rows, tokenizer, data_dir)
    eos, stop = _stops(case, tokenizer)
    if case.work in ONLINE:  # the policy's own samples matter, not the data's completions
        groups = [_ending(g, tokenizer.eos_token_id, eos) for g in groups]
    used = {int(i) for g in groups for part in (g.prompt, *g.completions) for i in part}
    vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    pad = next(i for i in range(vocabulary) if i not in used and i not in (eos, *stop))
    _model_folder(folder / "model", base, vocabulary, eos, pad)
    if case.work in ("sft", *ONLINE):
        groups = _as_the_stage_reads_them(folder, groups, eos)
    order = [step_rows(u, case.batch, len(groups), case.seed) for u in range(case.updates)]
    _store(folder, case, groups, cache)
    prompts = [len(g.prompt) for g in groups]
    completions = [len(c) for g in groups for c in g.completions]
    facts = {
        "rows": len(groups),
        "prompt_tokens_mean": round(float(np.mean(prompts)), 1),
        "completion_tokens_mean": round(float(np.mean(completions)), 1),
        "completions_per_prompt": len(groups[0].completions),
    }
    with (folder / "groups.jsonl").open("w", encoding="utf-8") as file:
        for group in groups:
            row = {
                "prompt": group.prompt.tolist(),
                "completions": [c.tolist() for c in group.completions],
            }
            file.write(json.dumps(row) + "\n")
    done = replace(case, eos=eos, pad=pad, stop=stop, order=order, facts=facts)
    (folder / "case.json").write_text(json.dumps(asdict(done), indent=1), encoding="utf-8")


def _stops(case: Case, tokenizer: Any) -> tuple[int, list[int]]:
    """The EOS of the case, and the ids that end a sample.

    Samples of a base model on raw text rarely end within the limit, so online works end a
    completion at a full stop: lengths then differ widely, as those of a trained policy do.
    """
    eos = int(tokenizer.eos_token_id)
    if case.model == "tiny":
        return eos, list(range(3, 23))
    full_stop = tokenizer.encode(".", add_special_tokens=False)[-1]
    if case.work in ONLINE:
        return full_stop, [full_stop]
    return eos, [eos, full_stop]


def _ending(group: TokenGroup, old: int, new: int) -> TokenGroup:
    """The group with the case's EOS at the end of its completions and nowhere else in them."""
    completions = tuple(
        np.append([i for i in c if i not in (old, new)] or [c[0]], new).astype(np.int32)
        for c in group.completions
    )
    prompt = group.prompt[(group.prompt != new) & (group.prompt != old)]
    return replace(group, prompt=prompt, completions=completions)


def _token_groups(case: Case, rows: int, tokenizer: Any, data_dir: Path | None) -> list[TokenGroup]:
    """The first ``rows`` rows that fit the limits, as alignlab tokenises them."""
    from alignlab.data.group import TokenGroup, Verdict
    from alignlab.data.template import Tokenization

    if case.data == "random":
        found = _random_groups(case, rows)
    else:
        tokenization = Tokenization(tokenizer, MAX_PROMPT, MAX_COMPLETION)
        found = []
        for text in _texts(case, data_dir):
            group = tokenization.group(text, len(found))
            if not any(group.truncated) and "prompt_cut" not in group.meta:
                found.append(group)
            if len(found) == rows:
                break
    if len(found) < rows:
        raise SystemExit(f"{case.name}: {rows} rows are needed and the data have {len(found)}.")
    completions = {"reward_k4": 4, "reward_k9": 9}.get(case.work)
    pool = [c for g in found for c in g.completions]
    result = []
    for row, group in enumerate(found):
        given = group.completions
        if completions:  # the own completions first, then those of the rows that follow
            first = sum(len(g.completions) for g in found[:row])
            given = tuple(pool[(first + k) % len(pool)] for k in range(completions))
            ranks = np.random.default_rng([case.seed, row]).permutation(completions)
            verdict = Verdict("ranking", ranks=tuple(map(int, ranks)))
        elif case.work == "kto":
            verdict = Verdict("thumbs", thumbs=(True, False))
        elif case.work in PAIRWISE:
            verdict = Verdict("ranking", ranks=(0, 1))
        else:
            given, verdict = given[:1], Verdict("demonstration")
        if case.work in ("kto", *PAIRWISE) and len(given) == 1:
            given = (given[0], pool[(row + 1) % len(pool)])
        result.append(
            TokenGroup(
                prompt=group.prompt,
                completions=given,
                verdict=verdict,
                row=row,
                id=str(row),
                truncated=(False,) * len(given),
            )
        )
    return result


def _texts(case: Case, data_dir: Path | None) -> Iterator[PromptGroup]:
    from alignlab.data.group import DEMONSTRATION, PromptGroup
    from alignlab.data.transcript import split_pair

    if case.data == "hh":
        for row in _lines(data_dir, "hh-rlhf", "harmless-base*.jsonl*"):
            prompt, chosen, rejected = split_pair(row["chosen"], row["rejected"])
            if chosen.strip() and rejected.strip() and chosen != rejected:
                yield PromptGroup(prompt, (chosen, rejected), id=prompt)
        return
    reviews = _reviews() if case.data in ("reviews", "mixed") else iter(())
    problems: Iterator[PromptGroup] = iter(())
    if case.data in ("gsm8k", "mixed"):
        problems = (
            PromptGroup(
                f"Question: {row['question']}\nAnswer:", (f" {row['answer']}",), DEMONSTRATION
            )
            for row in _lines(data_dir, "gsm8k", "train.jsonl*")
        )
    if case.data != "mixed":
        yield from reviews
        yield from problems
        return
    yield from (group for both in zip(reviews, problems, strict=False) for group in both)


def _reviews() -> Iterator[PromptGroup]:
    from alignlab.data.reviews import Reviews
    from alignlab.stages.sft import demonstrations

    source = Reviews(
        prompt_words=8,
        completion_min_words=8,
        completion_words=40,
        sft_share=0.5,
        limit=dict.fromkeys(
            ("pretrain", "pretrain_validation", "sft", "preference", "validation", "test")
        ),
    )
    yield from demonstrations(source.load("sft"))


def _lines(data_dir: Path | None, name: str, pattern: str) -> Iterator[dict[str, Any]]:
    """Rows of a JSON lines file under ``data_dir``/name, gzipped or not."""
    found = sorted((data_dir / name).glob(pattern)) if data_dir else []
    if not found:
        raise SystemExit(
            f"This work needs {name}/{pattern} under --data-dir (now: {data_dir}). HH-RLHF is "
            "Anthropic/hh-rlhf, GSM8K openai/grade-school-math; or use --model reviews_lm, whose "
            "data come with a package."
        )
    opener = gzip.open if found[0].suffix == ".gz" else open
    with opener(found[0], "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _random_groups(case: Case, rows: int) -> list[TokenGroup]:
    from alignlab.data.group import DEMONSTRATION, TokenGroup

    draw = np.random.default_rng(case.seed)

    def ids(low: int, high: int) -> np.ndarray:
        return draw.integers(30, 259, draw.integers(low, high)).astype(np.int32)

    return [
        TokenGroup(
            prompt=ids(8, 40),
            completions=tuple(np.append(ids(3, 16), 2).astype(np.int32) for _ in range(2)),
            verdict=DEMONSTRATION,
            row=row,
            id=str(row),
        )
        for row in range(rows)
    ]


def _model_folder(folder: Path, base: Path, vocabulary: int, eos: int, pad: int) -> None:
    """The base model with a tokenizer of words, and the case's EOS and padding in its config."""
    folder.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for weights in base.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights.resolve())
    word_tokenizer(vocabulary, eos, pad).save_pretrained(folder)


def word_tokenizer(vocabulary: int, eos: int, pad: int) -> Any:
    """A tokenizer of one word per id: ``t17`` is 17, ``<eos>`` and ``<pad>`` are those two."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {eos: "<eos>", pad: "<pad>"}
    names = {special.get(i, f"t{i}"): i for i in range(vocabulary)}
    core = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def _as_the_stage_reads_them(
    folder: Path, groups: Sequence[TokenGroup], eos: int
) -> list[TokenGroup]:
    """Write the rows as words, and return them in the order a stage gets them from that file."""
    from transformers import AutoTokenizer

    from alignlab.data.sources import File
    from alignlab.data.template import Tokenization

    def written(group: TokenGroup) -> dict[str, str]:
        return {
            "prompt": words(group.prompt, eos),
            "completion": " " + words(group.completions[0][:-1], eos),  # EOS is put there again
        }

    rows = [written(group) for group in groups]
    held_out = {"prompt": words(groups[0].prompt[::-1], eos), "completion": " t30"}
    for name, lines in (("rows.jsonl", rows), ("held_out.jsonl", [held_out])):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    source = File(
        path=str(folder / "rows.jsonl"),
        validation_path=str(folder / "held_out.jsonl"),
        test_path=None,
        format="auto",
        style="as_is",
        fields={},
        validation=0.0,
        test=0.0,
        sft=0.5,
        share=True,
        limit={},
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    read = Tokenization(tokenizer, MAX_PROMPT, MAX_COMPLETION).groups(source.load("sft"))
    before = sorted([*g.prompt.tolist(), -1, *g.completions[0].tolist()] for g in groups)
    after = sorted([*g.prompt.tolist(), -1, *g.completions[0].tolist()] for g in read)
    if before != after:
        raise SystemExit("the words do not give back the token ids: the case is broken.")
    return read


def backbone_config(folder: Path, case: Case, dtype: str = "float32") -> BackboneConfig:
    """The backbone of a case, as its stages configure it."""
    from alignlab.models.load import Adapter, BackboneConfig

    lora = case.adapter == "lora"
    return BackboneConfig(
        path=str(folder / "model"),
        revision=None,
        adapter=Adapter(
            rank=16 if lora else None, alpha=32.0, dropout=0.0, target_modules="all-linear"
        ),
        dtype="bfloat16" if dtype == "bfloat16" else "float32",
        layout="auto",
        gradient_checkpointing=False,
    )


def _store(folder: Path, case: Case, groups: Sequence[TokenGroup], cache: Path) -> None:
    """The finished runs that the stages start from: a policy with a scalar head, annotations.

    A fresh adapter is a zero update; its second factor gets small numbers, so that policy, base
    and reference are three different things and a mix-up shows in the losses.
    """
    import torch

    from alignlab.data.group import PromptGroup
    from alignlab.models.backbone import Backbone
    from alignlab.run import Store
    from alignlab.stages import annotate

    store = Store(folder / "store")
    backbone = Backbone.load(backbone_config(folder, case), cache, "cpu", seed=case.seed)
    backbone.add("policy", source=None, trainable=True, head=True)
    if case.adapter == "lora":
        generator = torch.Generator().manual_seed(case.seed)
        for name, parameter in backbone.trainable_parameters("policy").items():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(0.002 * noise)
    for kind in ("sft", "reward"):
        if kind == "reward" and case.work != "ppo":
            continue
        run = store.run(kind, "000000")
        backbone.save("policy", run.model_dir)
        run.update_record(label=kind)
        run.finish()
    if case.work in ("sft", "sampling", *ONLINE):
        return
    texts = [PromptGroup("", tuple("" for _ in g.completions), g.verdict, id=g.id) for g in groups]
    run = store.run("annotate", "000000")
    run.update_record(label="annotations")
    annotate.write(run.path / annotate.FILE, texts, groups, validation_share=0.0)
    run.finish()


def main() -> None:
    """``python cases.py JOB.json ANSWER.json``: make one case, in a process of its own."""
    import sys

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = make(
        Path(job["root"]),
        job["work"],
        model=job["model"],
        adapter=job["adapter"],
        cache=Path(job["cache"]),
        data_dir=Path(job["data_dir"]) if job["data_dir"] else None,
        size=Size(**job["size"]),
        seed=job["seed"],
    )
    Path(sys.argv[2]).write_text(json.dumps({"folder": str(folder)}), encoding="utf-8")


if __name__ == "__main__":
    main()
