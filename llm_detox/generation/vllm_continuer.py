"""vLLM in this process, where it is installed: its continuous batching and kernels in place of our sampling.

Each prompt has a seed of its own, so neither batch nor shard changes its sample; the noise is vLLM's, so its samples
are others than those of `llm_detox.generation.sampling`.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llm_detox.errors import DetoxError
from llm_detox.generation.models import compute_dtype, load_model, load_tokenizer, model_folder
from llm_detox.generation.sampling import row_key
from llm_detox.recipe import SamplingSection

_IN_FLIGHT = 4096  # sequences: more than any engine runs at once, and memory stays flat
_GPU_SHARE = 0.7  # the rest is for the scorer and the fluency model


def has_vllm() -> bool:
    """Whether vLLM can be imported here."""
    return importlib.util.find_spec("vllm") is not None


class VllmContinuer:
    """A model in vLLM's engine.

    Args:
        source: see `llm_detox.generation.models.load_model`; an adapter is merged into its base first.
        options: for `vllm.LLM`, such as `tensor_parallel_size`.

    Raises:
        DetoxError: vLLM is not installed, or the model cannot be had.
    """

    def __init__(self, source: str, **options: Any) -> None:
        if not has_vllm():
            raise DetoxError("vLLM is not installed", place="evaluation.engine",
                             remedy="install it, or set evaluation.engine to transformers")
        vllm = importlib.import_module("vllm")
        self.name = source
        self.tokenizer = load_tokenizer(source)
        self._merged: tempfile.TemporaryDirectory[str] | None = None
        if torch.cuda.is_available():
            options.setdefault("gpu_memory_utilization", _GPU_SHARE)
        self._llm = vllm.LLM(model=str(self._folder(source)), dtype=str(compute_dtype()).removeprefix("torch."),
                             enable_prefix_caching=True, **options)
        self._params, self._kind = vllm.SamplingParams, vllm.sampling_params.RequestOutputKind
        self._longest: int = self._llm.llm_engine.model_config.max_model_len

    def _folder(self, source: str) -> Path:
        folder = model_folder(source)
        if not (folder / "adapter_config.json").exists():
            return folder
        self._merged = tempfile.TemporaryDirectory(prefix="llm-detox-merged-")
        load_model(source).save_pretrained(self._merged.name)
        self.tokenizer.save_pretrained(self._merged.name)
        return Path(self._merged.name)

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Callable[[int], None] | None = None,
                      ) -> Iterator[tuple[int, list[str | None]]]:
        """Yield (index of the prompt, its k continuations) as prompts are finished, in any order."""
        engine = self._llm.llm_engine
        longest = self._longest - sampling.max_new_tokens
        waiting = iter(range(len(prompts)))
        for index in islice(waiting, max(1, _IN_FLIGHT // k)):
            self._ask(index, prompts[index], k, sampling, row_key(seed, keys[index], 0), longest)
        while engine.has_unfinished_requests():
            for answer in engine.step():
                if not answer.finished:
                    continue
                for index in islice(waiting, 1):
                    self._ask(index, prompts[index], k, sampling, row_key(seed, keys[index], 0), longest)
                yield int(answer.request_id), [one.text.rstrip("\ufffd") for one in answer.outputs]
                if on_progress:
                    on_progress(k)

    def _ask(self, index: int, prompt: str, k: int, sampling: SamplingSection, key: int, longest: int) -> None:
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]  # type: ignore[assignment]
        if not tokens:
            raise DetoxError("a prompt without tokens cannot be continued", place=f"prompt {index + 1}",
                             remedy="leave empty prompts out")
        params = self._params(n=k, temperature=sampling.temperature, top_p=sampling.top_p,
                              max_tokens=sampling.max_new_tokens, seed=key & 0x7FFFFFFF,
                              output_kind=self._kind.FINAL_ONLY)
        self._llm.llm_engine.add_request(str(index), {"prompt_token_ids": tokens[-longest:]}, params)

    def losses(self, texts: Sequence[str], *,
               on_progress: Callable[[int], None] | None = None) -> list[tuple[float, int]]:
        """See `llm_detox.scoring.fluency.LanguageModelJudge.losses`."""
        encoded: list[list[int]] = [
            self.tokenizer(text)["input_ids"][:self._longest - 1] if text else [] for text in texts]  # type: ignore[index,misc]
        places = [place for place, tokens in enumerate(encoded) if len(tokens) > 1]
        answers = self._llm.generate([{"prompt_token_ids": encoded[place]} for place in places],
                                     self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0), use_tqdm=False)
        results: list[tuple[float, int]] = [(0.0, 0)] * len(texts)
        for place, answer in zip(places, answers, strict=True):
            tokens = encoded[place]
            results[place] = (-sum(answer.prompt_logprobs[at][tokens[at]].logprob for at in range(1, len(tokens))),
                              len(tokens) - 1)
        if on_progress:
            on_progress(len(texts))
        return results
