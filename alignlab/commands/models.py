"""``alignlab export`` and ``alignlab chat``: what a finished run's model is good for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignlab.commands.study import store_root
from alignlab.errors import ConfigError
from alignlab.run import Run, Store


def export(names: Sequence[str], to: str, *, merge: bool, dtype: str | None = None) -> int:
    """Write a run's model as an ordinary Hugging Face folder (or a PEFT adapter folder).

    Several runs, each ``RUN`` or ``NAME=RUN``, become folders of their names inside of ``to``.
    """
    from alignlab.models.export import export_model
    from alignlab.models.served import server_command

    store = Store(store_root())
    runs = _named(store, names)
    target = Path(to)
    if len(runs) == 1:
        [run] = runs.values()
        print(export_model(run.model_dir, target, store.cache, merge=merge, dtype=dtype))
        return 0
    for name, run in runs.items():
        print(export_model(run.model_dir, target / name, store.cache, merge=merge, dtype=dtype))
    sources = {name: run.model_dir for name, run in runs.items()}
    if not merge and (line := server_command(sources, store.cache)):
        for name, source in sources.items():
            line = line.replace(f" {name}={source}", f" {name}={target / name}")
        print(f"By name on one base: {line}")
    return 0


def chat(
    names: Sequence[str], *, temperature: float, top_p: float, max_tokens: int, seed: int
) -> int:
    """Talk to the policies of runs in the terminal, one at a time; each ``RUN`` or ``NAME=RUN``."""
    store = Store(store_root())
    runs = _named(store, names)
    for run in runs.values():
        if (run.model_dir / "head.safetensors").is_file():
            raise ConfigError(
                f"{run.name} is a {run.kind} run: it scores text and does not write any."
            )
    from alignlab.models.served import describe, serve
    from alignlab.rollout.chat import Chat, talk

    served = serve({name: run.model_dir for name, run in runs.items()}, store.cache)
    chats: dict[str, Chat] = {}
    settings = {"temperature": temperature, "top_p": top_p}

    def turn(name: str) -> Chat:
        model, tokenizer = served[name].use(name)
        if name not in chats:
            chats[name] = Chat(model, tokenizer, max_tokens=max_tokens, seed=seed, **settings)
        return chats[name]

    labels = {n: f"{run.name} ({run.record.get('label') or run.kind})" for n, run in runs.items()}
    if len(runs) > 1:
        print(f"{describe(served)}.")
    return talk(turn, labels)


def _named(store: Store, names: Sequence[str]) -> dict[str, Run]:
    """Finished runs by the names they are asked for under."""
    found: dict[str, Run] = {}
    for stated in names:
        name, _, run = stated.rpartition("=")
        one = _finished(store, run)
        name = name or one.name
        if name in found or "/" in name:
            raise ConfigError(f"{stated}: name every run once, without '/', as NAME=RUN.")
        found[name] = one
    return found


def _finished(store: Store, name: str) -> Run:
    run = store.find(name)
    if not run.done:
        raise ConfigError(f"{run.name} is not finished; run its study again to continue it.")
    if not (run.model_dir / "view.json").is_file():
        raise ConfigError(f"{run.name} is a {run.kind} run and has no model.")
    return run
