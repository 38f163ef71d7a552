"""vLLM in this process, where it is installed: its continuous batching and kernels in place of our sampling.

Each prompt has a seed of its own, so neither batch nor shard changes its sample; the noise is vLLM's, so its samples
are others than those of `llm_detox.generation.sampling`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llm_detox.errors import DetoxError
from llm_detox.generation.models import compute_dtype, load_model, load_tokenizer, model_folder
from llm_detox.generation.next_token import row_key
from llm_detox.generation.sampling import cut_prompts
from llm_detox.generation.trees import Loss
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.runs.artifacts import TrainedFolder

_IN_FLIGHT = 4096  # sequences: more than any engine runs at once, and memory stays flat
_GPU_SHARE = 0.7  # the rest is for the scorer and the fluency model
_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}


def has_vllm() -> bool:
    """Whether vLLM can be imported here."""
    return importlib.util.find_spec("vllm") is not None


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Processes started here print to stderr for good, whatever they print with: stdout is for outcomes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class VllmGenerator:
    """A model in vLLM's engine.

    Args:
        source: see `llm_detox.generation.models.load_model`; an adapter is merged into its base first.
        options: for `vllm.LLM`, such as `tensor_parallel_size`.

    Attributes:
        llm: the `vllm.LLM`.

    Raises:
        DetoxError: vLLM is not installed, or the model cannot be had.
    """

    def __init__(self, source: str, **options: Any) -> None:
        if not has_vllm():
            raise DetoxError("vLLM is not installed", place="evaluation.engine",
                             remedy="install it, or set evaluation.engine to transformers")
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        vllm = importlib.import_module("vllm")
        self.name = source
        self.tokenizer = load_tokenizer(source)
        self._merged: tempfile.TemporaryDirectory[str] | None = None
        gpu = torch.cuda.is_available()
        # On a CPU compiling the model takes longer than it saves.
        defaults: dict[str, Any] = {"gpu_memory_utilization": _GPU_SHARE} if gpu else {"enforce_eager": True}
        folder, dtype = str(self._folder(source)), str(compute_dtype()).removeprefix("torch.")
        with _stdout_to_stderr():  # and only safetensors: vLLM would read pickled weights where it finds no others
            self.llm = vllm.LLM(model=folder, dtype=dtype, load_format="safetensors", trust_remote_code=False,
                                enable_prefix_caching=True, **{**defaults, **options})
        self._params, self._kind = vllm.SamplingParams, vllm.sampling_params.RequestOutputKind
        self._longest: int = self.llm.llm_engine.model_config.max_model_len

    def _folder(self, source: str) -> Path:
        folder = model_folder(source)
        if not TrainedFolder(folder).is_adapter:
            return folder
        self._merged = tempfile.TemporaryDirectory(prefix="llm-detox-merged-")
        load_model(source).save_pretrained(self._merged.name)
        torch.cuda.empty_cache()  # vLLM counts what is free
        self.tokenizer.save_pretrained(self._merged.name)
        return Path(self._merged.name)

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Callable[[int], None] | None = None,
                      ) -> Iterator[tuple[int, list[str | None]]]:
        """Yield (index of the prompt, its k continuations) as prompts are finished, in any order."""
        engine = self.llm.llm_engine
        encoded = cut_prompts([self._tokens(prompt, index) for index, prompt in enumerate(prompts)], self.tokenizer,
                              self._longest, sampling.max_new_tokens)
        waiting = iter(enumerate(encoded))
        asked: set[int] = set()

        def ask(count: int) -> None:
            for index, tokens in islice(waiting, count):
                params = self._params(n=k, temperature=sampling.temperature, top_p=sampling.top_p,
                                      max_tokens=sampling.max_new_tokens, output_kind=self._kind.FINAL_ONLY,
                                      seed=row_key(seed, keys[index], 0) & 0x7FFFFFFF)
                engine.add_request(str(index), {"prompt_token_ids": tokens}, params)
                asked.add(index)

        try:
            ask(max(1, _IN_FLIGHT // k))
            while asked:
                for answer in engine.step():
                    if not answer.finished:
                        continue
                    ask(1)
                    index = int(answer.request_id)
                    asked.remove(index)
                    yield index, [one.text.rstrip("\ufffd") for one in answer.outputs]
                    if on_progress:
                        on_progress(k)
        finally:  # whoever stops asking leaves nothing behind for the next call
            engine.abort_request([str(index) for index in asked])

    def _tokens(self, prompt: str, index: int) -> list[int]:
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]  # type: ignore[assignment]
        if not tokens:
            raise DetoxError("a prompt without tokens cannot be continued", place=f"prompt {index + 1}",
                             remedy="leave empty prompts out")
        return tokens

    def losses(self, texts: Sequence[str], *,
               on_progress: Callable[[int], None] | None = None) -> list[Loss]:
        """See `llm_detox.generation.likelihood.LikelihoodReader.losses`."""
        encoded: list[list[int]] = [
            self.tokenizer(text)["input_ids"][:self._longest - 1] if text else [] for text in texts]  # type: ignore[index,misc]
        places = [place for place, tokens in enumerate(encoded) if len(tokens) > 1]
        answers = self.llm.generate([{"prompt_token_ids": encoded[place]} for place in places],
                                     self._params(max_tokens=1, temperature=0.0, prompt_logprobs=0), use_tqdm=False)
        results: list[Loss] = [(0.0, 0)] * len(texts)
        for place, answer in zip(places, answers, strict=True):
            tokens = encoded[place]
            results[place] = (-sum(answer.prompt_logprobs[at][tokens[at]].logprob for at in range(1, len(tokens))),
                              len(tokens) - 1)
        if on_progress:
            on_progress(len(texts))
        return results
