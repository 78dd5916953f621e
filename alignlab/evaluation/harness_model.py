"""A policy as lm-eval's language model: its three requests, answered by our own passes.

Imported by `lm_harness` alone, because lm-eval is an optional package.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from alignlab.data.group import PromptGroup, TokenGroup
from alignlab.errors import ConfigError
from alignlab.evaluation.perplexity import encode, windows
from alignlab.evaluation.policy import Policy, bare
from alignlab.rollout.sampling import Sampling

UNLIMITED = 2048  # window of a rolling likelihood for a model without a limit of its own
TAKEN = frozenset({"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"})


class PolicyLM(LM):
    """Likelihoods from the flat batch, generation from our sampler.

    Texts become ids as in lm-eval: white space at a context's end goes to the continuation, and a
    continuation's ids are those that follow the context's in the ids of both together. A context
    that does not fit loses its beginning.
    """

    def __init__(self, policy: Policy, max_new_tokens: int, batch: int) -> None:
        super().__init__()
        self.policy = policy
        self.max_new_tokens = max_new_tokens
        self.batch = batch
        self.cut = 0  # contexts that lost their beginning

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, as lm-eval keeps its caches by."""
        return str(self.policy.backbone.config.path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Conversation as text by the tokenizer's chat template."""
        tokenizer = self.policy.backbone.tokenizer
        return str(
            tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of each continuation, and whether greedy decoding gives it."""
        pairs = [_moved(*request.args) for request in requests]
        by_context: defaultdict[str, list[int]] = defaultdict(list)
        for place, (context, _) in enumerate(pairs):
            by_context[context].append(place)
        tokenization = self.policy.tokenization(None)
        groups = tokenization.groups(
            [
                PromptGroup(context, tuple(pairs[place][1] for place in places))
                for context, places in by_context.items()
            ]
        )
        end = tokenization.tokenizer.eos_token_id
        fitting = [self._fit(bare(group, end)) for group in groups]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        scored = self.policy.score(fitting, greedy=True)
        for places, scores in zip(by_context.values(), scored, strict=True):
            for place, score in zip(places, scores, strict=True):
                assert score.greedy is not None
                found[place] = (float(score.logps.sum()), bool(score.greedy.all()))
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood (nats) of whole texts, each token predicted once, in windows."""
        texts = [request.args[0] for request in requests]
        window = self.policy.positions or UNLIMITED
        pieces: list[TokenGroup] = []
        owner: list[int] = []
        for number, document in enumerate(encode(self.policy.tokenization(None), texts)):
            found = windows(document, window, 1)
            pieces += found
            owner += [number] * len(found)
        totals = [0.0] * len(texts)
        for number, [score] in zip(owner, self.policy.score(pieces), strict=True):
            totals[number] += float(score.logps.sum())
        return totals

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continuations up to the first of each request's ``until``."""
        alike: defaultdict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(place)
        found = [""] * len(requests)
        for text, places in alike.items():
            options = json.loads(text)
            groups = [PromptGroup(requests[place].args[0]) for place in places]
            answers = self.policy.answer(groups, self._sampling(options), 1, _until(options))
            self.cut += answers.cut
            for place, [answer] in zip(places, answers.texts, strict=True):
                found[place] = answer
        return found

    def _sampling(self, options: dict[str, Any]) -> Sampling:
        if unknown := sorted(set(options) - TAKEN):
            raise ConfigError(
                f"lm-eval asks for generation with {', '.join(unknown)}, which is not supported"
                f" here ({', '.join(sorted(TAKEN))} are). Change the task's generation_kwargs."
            )
        warm = bool(options.get("do_sample", float(options.get("temperature") or 0) > 0))
        return Sampling(
            max_new_tokens=int(options.get("max_gen_toks", self.max_new_tokens)),
            temperature=float(options.get("temperature", 1.0)) if warm else 0.0,
            top_p=float(options.get("top_p", 1.0)),
            top_k=int(options.get("top_k", 0)),
            batch=self.batch,
        )

    def _fit(self, group: TokenGroup) -> TokenGroup:
        positions = self.policy.positions
        longest = max(map(len, group.completions))
        if positions is None or len(group.prompt) + longest <= positions:
            return group
        self.cut += 1
        return replace(group, prompt=group.prompt[-max(1, positions - longest) :])


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Context and continuation with the context's last white space moved to the continuation."""
    head = context.rstrip()
    return head, context[len(head) :] + continuation


def _until(options: dict[str, Any]) -> Sequence[str]:
    stops = options.get("until") or ()
    return [stops] if isinstance(stops, str) else list(stops)
