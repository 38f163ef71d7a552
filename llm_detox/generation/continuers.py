"""Where continuations come from: a model on this machine, a served model, or a file of earlier ones.

A model source may be an address: `http(s)://`, `grpc(s)://` (Caikit), `fmaas(s)://` (TGIS) or
`openai+http(s)://` (an OpenAI-compatible server such as vLLM's), with the served name as its path:
`grpc://127.0.0.1:8085/my-model`.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import iterate_continuations, row_key
from llm_detox.progress import say
from llm_detox.recipe import SamplingSection

Texts = list[str | None]
Progress = Callable[[int], None] | None
_ADDRESS = re.compile(r"(https?|grpcs?|fmaass?|openai\+https?)://")
_FAILURES_IN_A_ROW = 8
_ATTEMPTS, _PAUSE = 3, 0.2  # of one request; the Caikit client has its own


class Continuer(Protocol):
    """Draws continuations; None stands for one that could not be had."""

    name: str

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        """Yield (index of the prompt, its k continuations) as prompts are finished, in any order."""


def open_continuer(source: str) -> Continuer:
    """The continuer of a model source or address."""
    return EndpointContinuer(source) if _ADDRESS.match(source) else LocalContinuer(source)


class LocalContinuer:
    """A model loaded here, with the sampler of `llm_detox.generation.sampling`."""

    def __init__(self, source: str) -> None:
        self.name = source
        self.tokenizer, self.model = load_tokenizer(source), load_model(source)

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        for index, texts in iterate_continuations(self.model, self.tokenizer, prompts, k=k, sampling=sampling,
                                                  seed=seed, keys=keys, on_progress=on_progress):
            yield index, list(texts)


class EndpointContinuer:
    """A served model, with so many requests in flight; each continuation has a seed of its own.

    With `chat`, for an OpenAI-compatible server, a prompt is a conversation: its messages as JSON.

    Raises:
        DetoxError: several requests in a row failed; single failures give None.
    """

    def __init__(self, address: str, *, in_flight: int = 16, timeout: float = 120.0, chat: bool = False) -> None:
        self.name = address
        self.in_flight = in_flight
        openai = address.startswith("openai+")
        self._ask = _openai(address, timeout, chat=chat) if openai else _client(address, timeout)
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
            text = self._ask(prompt, sampling, seed)
        except Exception as error:  # whatever the server or the connection does, the continuation is missing
            if self._failed == 0:
                say(f"{self.name}: a continuation is missing: {type(error).__name__}: {error}")
            self._failed += 1
            return None
        self._failed = 0
        return text


def _client(address: str, timeout: float) -> Callable[[str, SamplingSection, int], str]:
    from llm_detox.client import TextGenerationClient

    parts = urlsplit(address)
    client = TextGenerationClient(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"), timeout=timeout)

    def ask(prompt: str, sampling: SamplingSection, seed: int) -> str:
        return client.generate(prompt, decoding_method="SAMPLING", temperature=sampling.temperature,
                               top_p=sampling.top_p, max_new_tokens=sampling.max_new_tokens, seed=seed).text

    return ask


def _openai(address: str, timeout: float, *, chat: bool) -> Callable[[str, SamplingSection, int], str]:
    parts = urlsplit(address.removeprefix("openai+"))
    token = os.environ.get("LLM_DETOX_TOKEN")

    def ask(prompt: str, sampling: SamplingSection, seed: int) -> str:
        body = {"model": parts.path.strip("/"), "max_tokens": sampling.max_new_tokens, "n": 1, "seed": seed,
                "temperature": sampling.temperature, "top_p": sampling.top_p,
                **({"messages": json.loads(prompt)} if chat else {"prompt": prompt})}
        request = urllib.request.Request(  # noqa: S310 - http and https alone get here
            f"{parts.scheme}://{parts.netloc}/v1/{'chat/' if chat else ''}completions", json.dumps(body).encode(),
            {"Content-Type": "application/json"})
        if token:
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # no other host gets it
        for attempt in range(_ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=timeout) as answer:  # noqa: S310
                    choice = json.load(answer)["choices"][0]
                    return str(choice["message"]["content"] or "") if chat else str(choice["text"])
            except OSError as error:  # refused, reset, timed out, or an error status
                if attempt + 1 == _ATTEMPTS or _is_final(error):
                    raise
                time.sleep(_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    return ask


def _is_final(error: OSError) -> bool:
    """Whether the server refuses the request itself, so that the same one would be refused again."""
    return isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429)


class StoredContinuer:
    """Continuations of an earlier run, of its shards, or from elsewhere, in RealToxicityPrompts' record format.

    Raises:
        DetoxError: a prompt has no record in the files, or its record has fewer continuations than asked for.
    """

    def __init__(self, files: Sequence[Path], name: str) -> None:
        self.name = name
        self._places: dict[str, tuple[Path, int]] = {}
        for path in files:
            for identity, offset in record_offsets(path):
                self._places.setdefault(identity, (path, offset))

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        for index, key in enumerate(keys):
            if key not in self._places:
                raise DetoxError(f"the stored continuations lack the prompt {key!r}", place=self.name,
                                 remedy="pass the generations.jsonl of every shard")
            path, offset = self._places[key]
            with path.open("rb") as file:
                file.seek(offset)
                stored = json.loads(file.readline())["generations"]
            if len(stored) < k:
                raise DetoxError(f"{len(stored)} continuations of prompt {key!r}, {k} are needed", place=str(path),
                                 remedy="sample them again, or lower evaluation.continuations")
            yield index, [generation.get("text") for generation in stored[:k]]
            if on_progress:
                on_progress(k)


def record_offsets(path: Path) -> Iterator[tuple[str, int]]:
    """Id and byte offset of each record of a JSON lines file.

    Raises:
        DetoxError: a line is not a record with `generations`.
    """
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record: dict[str, Any] = json.loads(line)
                identity, _ = str(record["id"]), record["generations"][0]["text"]
            except (ValueError, KeyError, IndexError, TypeError):
                raise DetoxError("not a record with id and generations", place=f"{path}, line {number}",
                                 remedy="pass the generations.jsonl that `llm-detox evaluate` wrote") from None
            yield identity, position
            position += len(line)


