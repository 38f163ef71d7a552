"""Where continuations come from: a model on this machine, or a served one.

A model source may be an address: `http(s)://`, `grpc(s)://` (Caikit), `fmaas(s)://` (TGIS) or
`openai+http(s)://` (an OpenAI-compatible server such as vLLM's), with the served name as its path:
`grpc://127.0.0.1:8085/my-model`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Protocol, runtime_checkable

from llm_detox.client import Prompt, TextGenerationClient
from llm_detox.client.protocols import is_address, split_address
from llm_detox.errors import DetoxError
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.models import device, load_model, load_tokenizer
from llm_detox.generation.next_token import row_key
from llm_detox.generation.sampling import iterate_continuations
from llm_detox.generation.trees import Loss
from llm_detox.plugins import PREFIX, load_plugin
from llm_detox.progress import say
from llm_detox.recipe.evaluation import SamplingSection

Texts = list[str | None]
Progress = Callable[[int], None] | None
_FAILURES_IN_A_ROW = 8


class Generator(Protocol):
    """Draws continuations; None stands for one that could not be had."""

    name: str

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        """Yield (index of the prompt, its k continuations) as prompts are finished, in any order."""


@runtime_checkable
class ReadingGenerator(Generator, Protocol):
    """One that can also say how likely its model finds a text."""

    def losses(self, texts: Sequence[str], *, on_progress: Progress = None) -> list[Loss]:
        """See `llm_detox.generation.likelihood.LikelihoodReader.losses`."""


def open_generator(source: str, engine: str = "transformers") -> Generator:
    """The continuer of a model source or address.

    Args:
        engine: what draws where the source is no address; auto is vLLM where it is installed and there is a GPU,
            `plugin:NAME` the engine of an installed package.

    Raises:
        DetoxError: the model cannot be had, or the engine that is asked for is not installed.
    """
    if is_address(source):
        return EndpointGenerator(source)
    if engine.startswith(PREFIX):
        continuer: Generator = load_plugin("llm_detox.engines", engine)(source)
        return continuer
    from llm_detox.generation.vllm_generator import VllmGenerator, has_vllm

    if engine == "vllm" or (engine == "auto" and device().type == "cuda" and has_vllm()):
        return VllmGenerator(source)
    return LocalGenerator(source)


class LocalGenerator:
    """A model loaded here, with the sampler of `llm_detox.generation.sampling`."""

    def __init__(self, source: str) -> None:
        self.name = source
        self.tokenizer, self.model = load_tokenizer(source), load_model(source)

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        for index, texts in iterate_continuations(self.model, self.tokenizer, prompts, k=k, sampling=sampling,
                                                  seed=seed, keys=keys, on_progress=on_progress):
            yield index, list(texts)

    def losses(self, texts: Sequence[str], *, on_progress: Progress = None) -> list[Loss]:
        return LikelihoodReader(self.model, self.tokenizer).losses(texts, on_progress=on_progress)


class EndpointGenerator:
    """A served model, with so many requests in flight; each continuation has a seed of its own.

    With `chat`, for an OpenAI-compatible server, a prompt is a conversation: its messages as JSON.

    Raises:
        DetoxError: several requests in a row failed; single failures give None.
    """

    def __init__(self, address: str, *, in_flight: int = 16, timeout: float = 120.0, chat: bool = False) -> None:
        self.name = address
        self.in_flight = in_flight
        url, model_id = split_address(address)
        self._client = TextGenerationClient(url, model_id, timeout=timeout, token=os.environ.get("LLM_DETOX_TOKEN"))
        self._chat = chat
        self._failed = 0

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        with ThreadPoolExecutor(self.in_flight) as pool:
            jobs = ((index, [pool.submit(self._one, prompt, sampling, row_key(seed, keys[index], number) & 0x7FFFFFFF)
                             for number in range(k)]) for index, prompt in enumerate(prompts))
            ahead = max(2, 2 * self.in_flight // k)
            waiting = list(islice(jobs, ahead))
            while waiting:
                index, futures = waiting.pop(0)
                yield index, [future.result() for future in futures]
                waiting += islice(jobs, 1)
                if on_progress:
                    on_progress(k)

    def _one(self, prompt: str, sampling: SamplingSection, seed: int) -> str | None:
        if self._failed >= _FAILURES_IN_A_ROW:
            raise DetoxError("the served model fails on every request", place=self.name,
                             remedy="check the server; the work done so far is kept")
        try:
            text = self._ask(json.loads(prompt) if self._chat else prompt, sampling, seed)
        except Exception as error:  # whatever the server or the connection does, the continuation is missing
            if self._failed == 0:
                say(f"{self.name}: a continuation is missing: {type(error).__name__}: {error}")
            self._failed += 1
            return None
        self._failed = 0
        return text

    def _ask(self, prompt: Prompt, sampling: SamplingSection, seed: int) -> str:
        return self._client.generate(prompt, decoding_method="SAMPLING", temperature=sampling.temperature,
                                     top_p=sampling.top_p, max_new_tokens=sampling.max_new_tokens, seed=seed).text
