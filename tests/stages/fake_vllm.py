"""Stand-ins for vLLM: its `LLM` class, and its server over HTTP on this machine.

Both read what they are given from folders as vLLM does, and sample token by token with transformers
alone. ``Faults`` makes them wrong in the ways that the correction and its bound are there for.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alignlab.errors import Interrupted


@dataclass
class Faults:
    """How the sampler is wrong."""

    shift: float = 0.0  # added to every log-probability that it reports
    deaf: bool = False  # it keeps the weights that it had first
    stop_at: int = 0  # in this request a signal comes


@dataclass
class Seen:
    """What the sampler was asked."""

    opened: list[dict[str, Any]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    requests: int = 0
    seeds: list[int] = field(default_factory=list)
    resets: int = 0


def drawn(model: Any, prompt: list[int], seed: int, most: int, stop: list[int], temperature: float,
          shift: float) -> tuple[list[int], list[float]]:  # fmt: skip
    """Tokens of one completion and their log-probabilities at the temperature."""
    stream = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    logps: list[float] = []
    with torch.no_grad():
        while len(tokens) < most and (not tokens or tokens[-1] not in stop):
            logits = model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            logp = (logits.float() / temperature).log_softmax(-1)
            token = int(torch.multinomial(logp.exp(), 1, generator=stream))
            tokens.append(token)
            logps.append(float(logp[token]) + shift)
    return tokens, logps


class Runner:
    """What vLLM calls the model of a worker."""

    def __init__(self, folder: str, faults: Faults) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.model, self.faults = self, faults

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        found = {name: tensor.float() for name, tensor in weights}
        if not self.faults.deaf:
            missing, unexpected = self.hf.load_state_dict(found, strict=False)
            assert not unexpected
            assert all("lm_head" in name for name in missing)  # tied


def install(monkeypatch: pytest.MonkeyPatch, faults: Faults) -> Seen:
    """Put a module ``vllm`` in place, for the time of a test."""
    seen = Seen()

    class LLM:
        def __init__(self, **options: Any) -> None:
            seen.opened.append(options)
            self.runner = Runner(options["model"], faults)
            self.adapters: dict[str, Any] = {}
            module, _, name = options["worker_extension_cls"].rpartition(".")
            extension = getattr(importlib.import_module(module), name)
            self.worker = type("Worker", (extension,), {"model_runner": self.runner})()

        def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
            seen.loads.append(args[0])
            return [getattr(self.worker, method)(*args)]

        def reset_prefix_cache(self) -> None:
            seen.resets += 1

        def model_of(self, request: Any) -> Any:
            if request is None:
                return self.runner.hf
            if request.path not in self.adapters:
                seen.loads.append(request.path)
                first = next(iter(self.adapters.values()), None)
                base = AutoModelForCausalLM.from_pretrained(seen.opened[-1]["model"])
                fresh = PeftModel.from_pretrained(base.float(), request.path).eval()
                self.adapters[request.path] = first if faults.deaf and first else fresh
            return self.adapters[request.path]

        def generate(self, prompts: list[Any], params: list[Any], *, use_tqdm: bool,
                     lora_request: Any) -> list[Any]:  # fmt: skip
            seen.requests += 1
            if seen.requests == faults.stop_at:
                raise Interrupted("stopped by SIGTERM.", 15)
            model = self.model_of(lora_request)
            outputs = []
            for prompt, how in zip(prompts, params, strict=True):
                seen.seeds.append(how.seed)
                tokens, logps = drawn(
                    model, prompt["prompt_token_ids"], how.seed, how.max_tokens,
                    how.stop_token_ids, how.temperature, faults.shift,
                )  # fmt: skip
                entries = [
                    {t: SimpleNamespace(logprob=v)} for t, v in zip(tokens, logps, strict=True)
                ]
                one = SimpleNamespace(token_ids=tokens, logprobs=entries)
                outputs.append(SimpleNamespace(outputs=[one]))
            return outputs

    vllm, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("request")
    vllm.__spec__ = importlib.machinery.ModuleSpec("vllm", None)  # type: ignore[attr-defined]
    vllm.LLM, vllm.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    request.LoRARequest = lambda name, number, path: SimpleNamespace(  # type: ignore[attr-defined]
        name=name, number=number, path=path
    )
    for name, module in (("vllm", vllm), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    return seen


@contextmanager
def served(base: str, faults: Faults) -> Iterator[tuple[str, Seen]]:
    """A server with the interface of ``vllm serve`` for adapters, on a free port."""
    seen = Seen()
    models: dict[str, Any] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def answer(self, code: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": "base"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                getattr(self, self.path.removeprefix("/v1/"))(body)

        def load_lora_adapter(self, body: Any) -> None:
            first = next(iter(models.values()), None)
            if body["lora_name"] in models:
                return self.answer(400, {"error": "the name is in use"})
            seen.loads.append(body["lora_name"])
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            fresh = PeftModel.from_pretrained(model, body["lora_path"]).eval()
            models[body["lora_name"]] = first if faults.deaf and first else fresh
            self.answer(200, {})
            return None

        def unload_lora_adapter(self, body: Any) -> None:
            if body["lora_name"] not in models:
                return self.answer(404, {"error": "no such adapter"})
            seen.unloads.append(body["lora_name"])
            del models[body["lora_name"]]
            self.answer(200, {})
            return None

        def completions(self, body: Any) -> None:
            if body["model"] not in models:
                return self.answer(404, {"error": f"no model {body['model']}"})
            seen.requests += 1
            seen.seeds.append(body["seed"])
            tokens, logps = drawn(models[body["model"]], body["prompt"], body["seed"],
                                  body["max_tokens"], body["stop_token_ids"], body["temperature"],
                                  faults.shift)  # fmt: skip
            choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logps}}
            self.answer(200, {"choices": [choice]})
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
