"""A vLLM server as the sampler: its HTTP interface, and TRL's client for full weights."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.errors import ConfigError, TrainingError
from alignlab.rollout.sampler import Samples
from alignlab.rollout.weights import Together, ship

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone
    from alignlab.rollout.vllm import Asked, Server

START = (
    "Start it with `vllm serve BASE --logprobs-mode processed_logprobs --enable-lora` and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."
)


class Remote:
    """One vLLM server, whose adapters or weights this stage replaces."""

    def __init__(self, config: Server, folder: Path) -> None:
        self.cap, self.max_gap = config.cap, config.max_gap
        self._config, self._folder = config, folder
        self._url = config.url.rstrip("/")
        self._base = ""  # what the server calls its model
        self._model = ""  # what is sampled from
        self._count = 0
        self._client: Any = None  # of TRL, for full weights

    def sync(self, backbone: Backbone, view: str, workers: Together) -> None:
        """Give the server the view's weights; with several processes the first one does.

        Raises:
            ConfigError: the server cannot be reached, or serves another base model.
            TrainingError: it refused the weights.
        """
        if not self._base:
            self._base = self._ask("/v1/models")["data"][0]["id"]
            self._model = self._base
        if not backbone.config.adapter.shares_base:
            self._send(backbone, view, workers)
        else:
            self._load(backbone, view, workers)

    def sample(self, asked: Asked) -> Samples:
        """Sample, every completion with its own seed, ``batch`` of them in one request at a time.

        Raises:
            TrainingError: the server failed, or left a log-probability out.
        """
        ids: list[np.ndarray] = []
        logps: list[np.ndarray] = []
        rows, size = asked.rows, self._config.batch
        for start in range(0, len(rows), size):
            # One seed for each prompt needs one request for each; they are sent together.
            for found in self._completions(rows[start : start + size], asked):
                tokens = [int(token) for token in found["token_ids"]]
                values = (found.get("logprobs") or {}).get("token_logprobs") or []
                if len(values) != len(tokens) or any(value is None for value in values):
                    count = sum(value is not None for value in values)
                    raise TrainingError(
                        f"{self._url} gave {count} log-probabilities for {len(tokens)} tokens."
                    )
                ids.append(np.array(tokens, dtype=np.int32))
                logps.append(np.array(values, dtype=np.float32))
        finished = np.array([len(i) > 0 and int(i[-1]) in asked.stop for i in ids])
        return Samples(ids=ids, logps=logps, finished=finished)

    def _completions(self, rows: list[tuple[list[int], int]], asked: Asked) -> list[dict[str, Any]]:
        from concurrent.futures import ThreadPoolExecutor

        sampling = asked.sampling

        def one(row: tuple[list[int], int]) -> dict[str, Any]:
            body = {
                "model": self._model,
                "prompt": row[0],
                "seed": row[1],
                "n": 1,
                "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "logprobs": 0,
                "return_token_ids": True,
                "stop_token_ids": list(asked.stop),
                "ignore_eos": True,  # the stop tokens are ours
            }
            [choice] = self._ask("/v1/completions", body)["choices"]
            return dict(choice)

        with ThreadPoolExecutor(max_workers=len(rows)) as threads:
            return list(threads.map(one, rows))

    def _load(self, backbone: Backbone, view: str, workers: Together) -> None:
        """Put a new adapter beside the base, and take the one before it away."""
        self._count += 1
        shipped = ship(backbone, view, self._folder, self._count, workers)
        # The run and the rollout; another attempt at the run may have used the name.
        name = f"{self._folder.parents[1].name}-{self._count}"
        if workers.is_main:
            self._unload(name, strict=False)
            self._ask(
                "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(shipped.adapter)}
            )
            if self._model != self._base:
                self._unload(self._model, strict=True)
        self._model = name
        workers.barrier()

    def _unload(self, name: str, *, strict: bool) -> None:
        try:
            self._ask("/v1/unload_lora_adapter", {"lora_name": name})
        except TrainingError:
            if strict:
                raise

    def _send(self, backbone: Backbone, view: str, workers: Together) -> None:
        """Broadcast full weights with TRL's client, which vLLM's own NCCL group is behind."""
        if self._client is None and workers.is_main:
            from trl.generation.vllm_client import VLLMClient

            self._client = VLLMClient(base_url=self._url, connection_timeout=60.0)
            self._client.init_communicator(device=backbone.device)
        with backbone.view(view) as active:
            if self._client is not None:
                self._client.update_model_params(active.model)
                self._client.reset_prefix_cache()
        workers.barrier()

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self._config.timeout) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            reason = error.read().decode(errors="replace").strip()[:500]
            raise TrainingError(f"{self._url}{path}: {error.code} {reason}. {START}") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise ConfigError(
                f"rollout.url: no vLLM server answers at {self._url}: {error}. {START}"
            ) from None
        return dict(json.loads(text)) if text.strip().startswith("{") else {}
