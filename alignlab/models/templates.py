"""Which chat template: the tokenizer's own, one of a small bank, TRL's training version, a file.

A backbone configuration names it (``backbone.template``), so that training, sampling and evaluation
read the same text; it is saved with the tokenizer of every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError, did_you_mean
from alignlab.models.template_bank import BANK, CHATML, DIALOGUE

__all__ = [
    "BANK",
    "CHATML",
    "DIALOGUE",
    "families",
    "require_same_template",
    "template_hash",
    "template_identity",
    "use_template",
]

TRAINING = "training"
NAMES = (*BANK, TRAINING)
SUFFIX = ".jinja"


def use_template(tokenizer: Any, template: str | None) -> Any:
    """Give ``tokenizer`` the chat template that a configuration names, and return it.

    Args:
        template: None (leave its own), a name of `BANK`, ``training`` (TRL's training version of
            its own template) or a ``.jinja`` file.

    Raises:
        ConfigError: no such template, or it does not fit the tokenizer.
    """
    if template is None:
        return tokenizer
    _check_name(template)
    if template == TRAINING:
        tokenizer.chat_template = _training(tokenizer)
    elif template in BANK:
        if template.startswith("chatml"):
            _require_tokens(tokenizer, ("<|im_start|>", "<|im_end|>"))
        tokenizer.chat_template = BANK[template]
    else:
        tokenizer.chat_template = _read(template)
    return tokenizer


def template_identity(template: str | None) -> str:
    """Text that changes when what ``template`` names changes; empty for None.

    Raises:
        ConfigError: no such template.
    """
    if template is None:
        return ""
    _check_name(template)
    if template == TRAINING:
        from importlib.metadata import version

        return f"{TRAINING} trl {version('trl')}"
    return _hash(BANK[template] if template in BANK else _read(template))


def template_hash(tokenizer: Any) -> str | None:
    """Twelve hex digits that name the tokenizer's chat template; None without one."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = "\0".join(f"{name}\0{text}" for name, text in sorted(template.items()))
    return _hash(template) if template else None


def require_same_template(mine: str | None, theirs: str | None, where: str) -> None:
    """Refuse to go on from a run that was made with another chat template.

    Args:
        mine: `template_hash` of this stage's tokenizer.
        theirs: the one of the run, which ``where`` names.

    Raises:
        ConfigError: names both templates.
    """
    if mine != theirs:
        raise ConfigError(
            f"{where} was made with {_named(theirs)}, and this stage uses {_named(mine)}: what it "
            "learned would be asked for in other words. Use the same backbone.template in every "
            "stage; to change it, train from the first stage on."
        )


def _check_name(template: str) -> None:
    if template in NAMES or template.endswith(SUFFIX):
        return
    raise ConfigError(
        f"backbone.template={template}: no such chat template; there are {', '.join(NAMES)}, or "
        f"name a {SUFFIX} file, or null for the tokenizer's own." + did_you_mean(template, NAMES)
    )


def _read(path: str) -> str:
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"backbone.template={path}: cannot be read ({error}).") from None
    if not text.strip():
        raise ConfigError(f"backbone.template={path}: the file is empty.")
    return text


def _require_tokens(tokenizer: Any, tokens: tuple[str, ...]) -> None:
    missing = [token for token in tokens if token not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            f"backbone.template=chatml: the tokenizer has no token {' and no '.join(missing)}, so "
            "turns would end in plain text. Use backbone.template=dialogue, which any tokenizer "
            "can write."
        )


def _training(tokenizer: Any) -> str | dict[str, str]:
    from trl import get_training_chat_template

    own = tokenizer.chat_template
    if not own:
        raise ConfigError(
            "backbone.template=training: the tokenizer has no chat template of its own that could "
            f"have a training version. Use one of {', '.join(BANK)}, or a {SUFFIX} file."
        )
    try:
        return get_training_chat_template(tokenizer) or own
    except ValueError as error:
        raise ConfigError(
            "backbone.template=training: TRL has no training version of this tokenizer's chat "
            f"template; it knows {', '.join(families())} by their exact text. Write one that keeps "
            "earlier turns as they were and marks what the assistant says with {% generation %}: "
            f"backbone.template=FILE{SUFFIX}."
        ) from error


def families() -> list[str]:
    """Names of the template families of which TRL has a training version."""
    from importlib.resources import files

    ending = f"_training{SUFFIX}"
    names = (entry.name for entry in (files("trl") / "chat_templates").iterdir())
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending))


def _named(found: str | None) -> str:
    return f"chat template {found}" if found else "no chat template"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
