"""A conversation with a policy in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TextIO

import torch

from alignlab.errors import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it."


class Chat:
    """A policy with sampling settings, and what has been said so far.

    A tokenizer with a chat template makes it a conversation; without one, every line is a text that
    the model goes on writing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        temperature: float,
        top_p: float,
        max_tokens: int,
        seed: int,
    ) -> None:
        # transformers' classes are typed too loosely for their own methods
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.temperature, self.top_p, self.max_tokens = temperature, top_p, max_tokens
        self.conversational = bool(tokenizer.chat_template)
        self.messages: list[dict[str, str]] = []
        torch.manual_seed(seed)

    def reset(self) -> None:
        """Forget what was said."""
        self.messages.clear()

    def answer(self, text: str) -> Iterator[str]:
        """Yield the policy's answer to ``text`` in pieces, as it is generated."""
        from threading import Thread

        from transformers import TextIteratorStreamer

        streamer: Any = TextIteratorStreamer(
            self.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                self.model.generate(**self._inputs(text), **self._sampling(), streamer=streamer)
            except BaseException as error:
                failed.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        pieces = []
        for piece in streamer:
            pieces.append(piece)
            yield piece
        thread.join()
        if failed:
            raise failed[0]
        if self.conversational:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _inputs(self, text: str) -> dict[str, Any]:
        if not self.conversational:
            return dict(self.tokenizer(text, return_tensors="pt"))
        self.messages.append({"role": "user", "content": text})
        rendered = self.tokenizer.apply_chat_template(
            self.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        return dict(rendered)

    def _sampling(self) -> dict[str, Any]:
        chosen: dict[str, Any] = {"max_new_tokens": self.max_tokens, "do_sample": False}
        if self.temperature > 0:
            sampled = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
            chosen |= {**sampled, "top_k": 0}
        if self.tokenizer.pad_token_id is not None:
            chosen["pad_token_id"] = self.tokenizer.pad_token_id
        return chosen


def talk(
    turn: Callable[[str], Chat], titles: Mapping[str, str], stream: TextIO | None = None
) -> int:
    """Read lines and print answers until the input ends.

    ``turn(name)`` gives the conversation with one of the policies that ``titles`` names, and makes
    it the one that answers; the first one begins, and ``/use NAME`` goes to another.
    """
    out = stream or sys.stdout
    name = next(iter(titles))
    chat = turn(name)
    _greet(chat, titles[name], titles, out)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print(file=out)
            return 0
        command, _, argument = text.partition(" ")
        if text == "/quit":
            return 0
        if text == "/reset":
            chat.reset()
        elif command == "/use" and argument.strip() in titles:
            name = argument.strip()
            chat = turn(name)
            _greet(chat, titles[name], titles, out)
        elif command == "/use":
            known = ", ".join(titles)
            near = did_you_mean(argument.strip(), titles)
            print(f"No policy {argument.strip()!r}; there are {known}.{near}", file=out)
        elif text:
            for piece in chat.answer(text):
                print(piece, end="", file=out, flush=True)
            print(file=out)


def _greet(chat: Chat, title: str, titles: Mapping[str, str], out: TextIO) -> None:
    mode = "a conversation" if chat.conversational else "no chat template: it continues your text"
    switch = f" /use {'|'.join(titles)} goes to another policy." if len(titles) > 1 else ""
    print(f"{title}: {mode}. {HELP}{switch}", file=out)
