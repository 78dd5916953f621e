"""``alignlab export`` and ``alignlab chat``: what a finished run's model is good for."""

from __future__ import annotations

from pathlib import Path

from alignlab.commands.study import store_root
from alignlab.errors import ConfigError
from alignlab.run import Run, Store


def export(name: str, to: str, *, merge: bool, dtype: str | None = None) -> int:
    """Write a run's model as an ordinary Hugging Face folder (or a PEFT adapter folder)."""
    from alignlab.models.export import export_model

    store = Store(store_root())
    folder = _finished(store, name).model_dir
    print(export_model(folder, Path(to), store.cache, merge=merge, dtype=dtype))
    return 0


def chat(name: str, *, temperature: float, top_p: float, max_tokens: int, seed: int) -> int:
    """Talk to a run's policy in the terminal."""
    store = Store(store_root())
    run = _finished(store, name)
    if (run.model_dir / "head.safetensors").is_file():
        raise ConfigError(f"{run.name} is a {run.kind} run: it scores text and does not write any.")
    from alignlab.models.export import load_merged
    from alignlab.rollout.chat import Chat, talk

    model, tokenizer = load_merged(run.model_dir, store.cache)
    chat = Chat(
        model,
        tokenizer,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
    )
    label = run.record.get("label") or run.kind
    return talk(chat, f"{run.name} ({label})")


def _finished(store: Store, name: str) -> Run:
    run = store.find(name)
    if not run.done:
        raise ConfigError(f"{run.name} is not finished; run its study again to continue it.")
    if not (run.model_dir / "view.json").is_file():
        raise ConfigError(f"{run.name} is a {run.kind} run and has no model.")
    return run
