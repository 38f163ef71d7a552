"""Where continuations come from: a model on this machine, a served one, or files of an earlier run.

A model source may be an address: `http(s)://`, `grpc(s)://` (Caikit), `fmaas(s)://` (TGIS) or
`openai+http(s)://` (an OpenAI-compatible server such as vLLM's), with the served name as its path:
`grpc://127.0.0.1:8085/my-model`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel

from llm_detox.client import Prompt, TextGenerationClient
from llm_detox.client.client import is_address, split_address
from llm_detox.client.credentials import credentials_for
from llm_detox.client.types import Chunk, Parameters
from llm_detox.data.records import Record, check_generations, numbered_id, record_id, with_generations
from llm_detox.errors import DetoxError
from llm_detox.generation.likelihood import LikelihoodReader
from llm_detox.generation.models import device, load_model, load_tokenizer, positions
from llm_detox.generation.next_token import draw, row_key
from llm_detox.generation.sampling import end_tokens, iterate_continuations
from llm_detox.generation.tokens import Vocabulary
from llm_detox.generation.trees import Loss
from llm_detox.plugins import PREFIX, load_plugin
from llm_detox.progress import say
from llm_detox.recipe.evaluation import SamplingSection

Texts = list[str | None]
Progress = Callable[[int], None] | None
_FAILURES_IN_A_ROW = 8
_GROUPS_AT_ONCE = 64


class Generator(Protocol):
    """What an evaluation asks for continuations; packages add their own as entry points of `llm_detox.engines`.

    Attributes:
        name: for people: the model's source or address.
    """

    name: str

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        """The continuations of all prompts, as prompts are finished.

        Args:
            prompts: texts to continue.
            k: continuations for each.
            sampling: nucleus, temperature and length; `batch_tokens` bounds a batch of one that runs here.
            seed: of the whole run.
            keys: the name of each prompt. Seed, key and number of a continuation alone should decide it, so that
                neither batches nor shards change a sample.
            on_progress: called with the number of continuations that are done since the last call.

        Yields:
            the index of a prompt and its k texts, prompts in any order, leading spaces kept; None for a continuation
            that could not be had.

        Raises:
            DetoxError: a prompt cannot be continued, or none can any more.
        """


@runtime_checkable
class ReadingGenerator(Generator, Protocol):
    """One that can also say how likely its model finds a text, which perplexities are made of."""

    def losses(self, texts: Sequence[str], *, on_progress: Progress = None) -> list[Loss]:
        """Sum of negative log-likelihoods in nats and number of predicted tokens, for each text in their order.

        See `llm_detox.generation.likelihood.LikelihoodReader.losses`.
        """


def open_generator(source: str, engine: str = "transformers") -> Generator:
    """The generator of a model source or address.

    Args:
        source: see `llm_detox.generation.models.load_model`; or an address, as above.
        engine: what runs a source that is no address: `transformers`, `vllm`, `auto` (vLLM where it is installed and
            there is a GPU), or `plugin:NAME`, the engine of an installed package, which is called with the source.

    Raises:
        DetoxError: the model cannot be had, or the engine that is asked for is not installed.
    """
    if is_address(source):
        return EndpointGenerator(source)
    if engine.startswith(PREFIX):
        generator: Generator = load_plugin("llm_detox.engines", engine)(source)
        return generator
    from llm_detox.generation.vllm_generator import VllmGenerator, has_vllm

    if engine == "vllm" or (engine == "auto" and device().type == "cuda" and has_vllm()):
        return VllmGenerator(source)
    return LocalGenerator(source)


def variant_losses(generator: ReadingGenerator, variants: Sequence[Sequence[str]],
                   on_progress: Progress = None) -> list[list[Loss]]:
    """The losses of groups of texts that begin alike; a model that is loaded here reads each beginning once.

    A loss is comparable within its group only: whether a text's first token counts depends on the generator.

    Args:
        on_progress: called with the number of texts that are done since the last call.
    """
    if isinstance(generator, LocalGenerator):
        reader = LikelihoodReader(generator.model, generator.tokenizer)
        if reader.reads_trees():
            groups: list[list[Loss]] = []
            for first in range(0, len(variants), _GROUPS_AT_ONCE):
                some = variants[first:first + _GROUPS_AT_ONCE]
                groups += reader.variant_losses(some)
                reader.forget()
                if on_progress:
                    on_progress(sum(map(len, some)))
            return groups
    losses = iter(generator.losses([text for group in variants for text in group], on_progress=on_progress))
    return [list(islice(losses, len(group))) for group in variants]


class LocalGenerator:
    """A model loaded here, with the sampler of `llm_detox.generation.sampling`; it reads texts, too.

    Args:
        source: see `llm_detox.generation.models.load_model`.

    Raises:
        DetoxError: the model cannot be had.
    """

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


class LocalStreamer:
    """A model of this process that answers as a served one does.

    Args:
        source: see `llm_detox.generation.models.load_model`.

    Raises:
        DetoxError: the model cannot be had.
    """

    def __init__(self, source: str) -> None:
        self.tokenizer, self.model = load_tokenizer(source), load_model(source)

    def stream(self, prompt: str, parameters: Parameters) -> Iterator[Chunk]:
        """The continuation piece by piece.

        Sampled tokens are drawn as `sampling.sample_continuations` draws the first continuation of the prompt: with
        the same seed two models share their noise. Of the parameters max_new_tokens, decoding_method, temperature,
        top_p and seed count.

        Raises:
            DetoxError: the prompt has no tokens, or leaves no room for a continuation.
        """
        most = parameters.max_new_tokens or 20
        asked = self._encode(prompt, most)
        ends, detokenizer = end_tokens(self.model, self.tokenizer), Vocabulary.of(self.tokenizer).detokenizer()
        for before, token in enumerate(_tokens(self.model, asked, prompt, parameters)):
            if token in ends:
                yield Chunk(detokenizer.flush(), before, "EOS_TOKEN", len(asked))
                return
            piece = detokenizer.push(token)
            if before + 1 == most:
                yield Chunk(piece + detokenizer.flush(), before + 1, "MAX_TOKENS", len(asked))
                return
            if piece:
                yield Chunk(piece, before + 1, "NOT_FINISHED", len(asked))

    def _encode(self, prompt: str, new_tokens: int) -> list[int]:
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]  # type: ignore[assignment]
        if not tokens:
            raise DetoxError("a prompt without tokens cannot be continued", remedy="write something")
        limit = positions(self.model.config)
        if limit and len(tokens) + new_tokens > limit:
            raise DetoxError(f"the prompt's {len(tokens)} tokens and {new_tokens} new ones are more than the model's "
                             f"{limit}", remedy="shorten the prompt, or ask for fewer tokens")
        return tokens


@torch.inference_mode()
def _tokens(model: PreTrainedModel, asked: list[int], prompt: str, parameters: Parameters) -> Iterator[int]:
    """Token after token without end; the caller stops."""
    greedy = parameters.decoding_method != "SAMPLING"
    noise = torch.tensor([row_key(parameters.seed or 0, record_id(prompt), 0)], device=model.device)
    tokens, cache, step = torch.tensor([asked], device=model.device), None, 0
    while True:
        out: Any = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[:, -1], out.past_key_values
        if greedy:
            token = logits.argmax(1)
        else:
            token = draw(logits, noise, step, top_p=parameters.top_p or 1.0,
                         temperature=parameters.temperature or 1.0)
        yield int(token)
        tokens, step = token[:, None], step + 1


class EndpointGenerator:
    """A served model; each continuation is a request with a seed of its own.

    Args:
        address: see the top of this file; with `model`, of its server. Token and CA: see `credentials_for`.
        model: the name under which the model is served; None: the path of the address.
        in_flight: requests at once.
        timeout: seconds for one.
        chat: for an OpenAI-compatible server: a prompt is a conversation, its messages as JSON.

    Raises:
        DetoxError: several requests in a row failed; single failures give None.
    """

    def __init__(self, address: str, *, model: str | None = None, in_flight: int = 16, timeout: float = 120.0,
                 chat: bool = False) -> None:
        self.name = address
        self.in_flight = in_flight
        url, model_id = split_address(address) if model is None else (address, model)
        self._client = TextGenerationClient(
            url, model_id, timeout=timeout, **credentials_for(url).options())
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


class StoredContinuations:
    """Continuations that were sampled before: by a run of ours, by its shards, or elsewhere.

    Args:
        files: in RealToxicityPrompts' record format, or lm-evaluation-harness's logged samples; records without an id
            are known by their prompt.
        name: for people.

    Raises:
        DetoxError: a prompt has no record in the files, or its record has fewer continuations than asked for.
    """

    def __init__(self, files: Sequence[Path], name: str) -> None:
        self.name = name
        self._places: dict[str, tuple[Path, int]] = {}
        seen: dict[str, int] = {}
        for path in files:
            for identity, offset in record_offsets(path, seen):
                self._places.setdefault(identity, (path, offset))

    def continuations(self, prompts: Sequence[str], *, k: int, sampling: SamplingSection, seed: int,
                      keys: Sequence[str], on_progress: Progress = None) -> Iterator[tuple[int, Texts]]:
        with ExitStack() as opened:
            files = {path: opened.enter_context(path.open("rb"))
                     for path in dict.fromkeys(path for path, _ in self._places.values())}
            for index, key in enumerate(keys):
                if key not in self._places:
                    raise DetoxError(f"the stored continuations lack the prompt {key!r}", place=self.name,
                                     remedy="pass the generations.jsonl of every shard")
                path, offset = self._places[key]
                files[path].seek(offset)
                stored = with_generations(json.loads(files[path].readline()))["generations"]
                if len(stored) < k:
                    raise DetoxError(f"{len(stored)} continuations of prompt {key!r}, {k} are needed", place=str(path),
                                     remedy="sample them again, or lower evaluation.continuations")
                yield index, [generation.get("text") for generation in stored[:k]]
                if on_progress:
                    on_progress(k)


def record_offsets(path: Path, seen: dict[str, int] | None = None) -> Iterator[tuple[str, int]]:
    """Id and byte offset of each record of a JSON lines file.

    Args:
        seen: how often the id of a prompt came so far, for records that bring none.

    Raises:
        DetoxError: a line is not a record with `generations` and an id or a prompt.
    """
    seen = {} if seen is None else seen
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = with_generations(json.loads(line))
                check_generations(record)
                identity = str(record["id"]) if "id" in record else numbered_id(_prompt_id(record), seen)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DetoxError("not a record with generations, and an id or a prompt", place=f"{path}, line {number}",
                                 remedy="pass the generations.jsonl that `llm-detox evaluate` wrote, what `lm_eval "
                                        "--log_samples` wrote, or records like "
                                        '{"prompt": {"text": "..."}, "generations": [{"text": "..."}]}') from None
            yield identity, position
            position += len(line)


def _prompt_id(record: Record) -> str:
    prompt = record["prompt"]
    return record_id(prompt if isinstance(prompt, str) else prompt["text"])
