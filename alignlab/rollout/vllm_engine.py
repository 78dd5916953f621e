"""vLLM in the training process: its `LLM` class, fed through a folder before every rollout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignlab.errors import TrainingError
from alignlab.rollout.sampler import Samples
from alignlab.rollout.weights import Shipped, Together, ship

if TYPE_CHECKING:
    from alignlab.models.backbone import Backbone
    from alignlab.rollout.vllm import Asked, Colocated

LOADER = "alignlab.rollout.vllm_loader.Loader"


class Inside:
    """One `vllm.LLM` in this process."""

    def __init__(self, config: Colocated, folder: Path, longest: int) -> None:
        self.cap, self.max_gap = config.cap, config.max_gap
        self._config, self._folder, self._longest = config, folder, longest
        self._llm: Any = None
        self._adapter: Any = None  # vLLM's request for the adapter in use
        self._count = 0

    def sync(self, backbone: Backbone, view: str, workers: Together) -> None:
        """Write the view into the folder and let vLLM read it."""
        self._count += 1
        shipped = ship(backbone, view, self._folder, self._count, workers)
        if self._llm is None:
            self._llm = self._opened(shipped)
        elif shipped.adapter is None:
            self._llm.collective_rpc("load_folder", args=(str(shipped.model),))
        if shipped.adapter is not None:
            from vllm.lora.request import LoRARequest

            # A new name and number each time: vLLM keeps adapters by them.
            name = f"policy-{self._count}"
            self._adapter = LoRARequest(name, self._count, str(shipped.adapter))
        self._llm.reset_prefix_cache()  # what was computed with older weights

    def sample(self, asked: Asked) -> Samples:
        """Sample, every completion with its own seed."""
        from vllm import SamplingParams

        sampling = asked.sampling
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in asked.rows]
        params = [
            SamplingParams(
                n=1,
                seed=seed,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=list(asked.stop),
                ignore_eos=True,  # the stop tokens are ours
                logprobs=0,
                detokenize=False,
            )
            for _, seed in asked.rows
        ]
        outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._adapter)
        ids, logps = [], []
        for output in outputs:
            [found] = output.outputs
            tokens = list(found.token_ids)
            if found.logprobs is None or len(found.logprobs) != len(tokens):
                raise TrainingError("vLLM gave no log-probability for every token it sampled.")
            ids.append(np.array(tokens, dtype=np.int32))
            values = [entry[t].logprob for entry, t in zip(found.logprobs, tokens, strict=True)]
            logps.append(np.array(values, dtype=np.float32))
        finished = np.array([len(i) > 0 and int(i[-1]) in asked.stop for i in ids])
        return Samples(ids=ids, logps=logps, finished=finished)

    def _opened(self, shipped: Shipped) -> Any:
        # The engine in this very process: its GPU is the trainer's, and so is its process group.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        adapter = {"enable_lora": True, "max_lora_rank": shipped.rank, "max_loras": 1}
        return LLM(
            model=str(shipped.model),
            tokenizer=str(shipped.tokenizer),
            dtype=shipped.dtype,
            max_model_len=self._longest,
            gpu_memory_utilization=self._config.gpu_memory,
            enforce_eager=self._config.enforce_eager,
            logprobs_mode="processed_logprobs",  # after the temperature, as ours
            worker_extension_cls=LOADER,
            distributed_executor_backend="external_launcher" if _launched() else None,
            **(adapter if shipped.adapter is not None else {}),
        )


def _launched() -> bool:
    """Whether this is one of several processes, each with a vLLM of its own."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
