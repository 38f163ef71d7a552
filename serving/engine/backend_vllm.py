"""vLLM as the engine, where it is installed: it batches and samples; texts and stops stay those of this server."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_detox.errors import DetoxError
from llm_detox.generation.tokens import TokenDetail, Vocabulary
from serving.engine.continuation import Continuation
from serving.engine.jobs import NOT_FINISHED, Job
from serving.engine.metrics import Metrics
from serving.engine.settings import Settings
from serving.engine.validation import Parameters

log = logging.getLogger(__name__)


def installed() -> bool:
    """Whether vLLM can be imported; it is not, as that takes seconds."""
    return find_spec("vllm") is not None


class VllmEngine:
    """Jobs to vLLM's asynchronous engine, which runs on an event loop in a thread of its own.

    Args:
        folder: of the model.
        settings: of the engine.
        vocabulary, eos: see `Continuation`.

    Raises:
        DetoxError: vLLM cannot serve the model.
    """

    def __init__(self, folder: Path, settings: Settings, vocabulary: Vocabulary, eos: frozenset[int],
                 metrics: Metrics) -> None:
        self._vocabulary, self._eos, self._metrics = vocabulary, eos, metrics
        self._futures: dict[Job, Future[None]] = {}
        self._count = 0
        self._generates = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self._engine = asyncio.run_coroutine_threadsafe(_make(folder, settings), self._loop).result()
        except Exception as error:
            log.debug("vLLM did not start", exc_info=True)
            raise DetoxError(f"vLLM cannot serve this model ({type(error).__name__}: {error})", place=str(folder),
                             remedy="--backend transformers, or see the log above") from None
        self.max_sequence_length = int(self._engine.model_config.max_model_len)

    @property
    def healthy(self) -> bool:
        """Whether tokens have come, and the engine's process has not failed since."""
        return self._generates and not self._engine.errored

    def start(self) -> None:
        """The engine runs since it was made."""

    def stop(self) -> None:
        """End the engine's process; what is unfinished fails."""
        try:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        except TimeoutError:
            log.warning("vLLM did not end in time")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._engine.shutdown()

    def refusal(self, parameters: Parameters) -> str | None:
        """vLLM has no typical sampling and no length penalty."""
        if parameters.typical_p < 1.0:
            return "typical_p is not supported by the vLLM back end"
        if parameters.length_penalty is not None and parameters.length_penalty[1] > 1.0:
            return "length_penalty is not supported by the vLLM back end"
        return None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue requests; their news comes through `deliver`."""
        for job in jobs:
            self._count += 1
            running = self._run(Continuation(job, self._vocabulary, self._eos), str(self._count))
            self._futures[job] = future = asyncio.run_coroutine_threadsafe(running, self._loop)
            future.add_done_callback(functools.partial(self._forget, job))

    def cancel(self, job: Job) -> None:
        """Give the request's place to others."""
        future = self._futures.get(job)
        if future is not None:
            future.cancel()

    def _forget(self, job: Job, done: Future[None]) -> None:
        self._futures.pop(job, None)

    async def _run(self, answer: Continuation, number: str) -> None:
        deadline = answer.parameters.deadline
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        try:
            async with asyncio.timeout(left):
                await self._follow(answer, number)
        except TimeoutError:
            answer.time_out()
        except asyncio.CancelledError:  # the client has gone, or the server ends
            answer.fail(RuntimeError("cancelled"))
            raise
        except Exception as error:
            self._generates = False
            answer.fail(error)

    async def _follow(self, answer: Continuation, number: str) -> None:
        p, ids = answer.parameters, answer.job.ids
        pieces = self._engine.generate({"prompt_token_ids": ids}, sampling_parameters(p, self._eos), number)
        try:
            async for output in pieces:
                if p.input_tokens and answer.count == 0 and output.prompt_logprobs is not None:
                    answer.read_prompt(prompt_details(p, ids, output.prompt_logprobs))
                elif p.input_tokens and answer.count == 0:
                    answer.read_prompt([TokenDetail(token) for token in ids])
                piece = output.outputs[0]
                for index, token in enumerate(piece.token_ids):
                    candidates = piece.logprobs[index] if piece.logprobs else None
                    answer.accept(token, detail(p, token, candidates) if candidates else None)
                    self._generates = True
                    if answer.reason != NOT_FINISHED:
                        return
            answer.fail(RuntimeError("vLLM ended the request"))
        finally:
            await pieces.aclose()  # vLLM drops the request where it is unfinished


def sampling_parameters(p: Parameters, eos: frozenset[int]) -> Any:
    """The same in vLLM's words: ids in, ids out, and one message for each token."""
    from vllm import SamplingParams  # type: ignore[import-not-found]
    from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

    wanted = p.top_n if p.logprobs or p.ranks or p.top_n else None
    return SamplingParams(
        temperature=p.temperature, top_p=p.top_p, top_k=p.top_k, seed=p.seed,
        repetition_penalty=p.repetition_penalty, max_tokens=p.max_new_tokens, min_tokens=p.min_new_tokens,
        # Ends are told by id, so that they are those of `generate`.
        ignore_eos=True, stop_token_ids=sorted(eos), detokenize=False, output_kind=RequestOutputKind.DELTA,
        logprobs=wanted if p.generated_tokens else None, prompt_logprobs=wanted if p.input_tokens else None)


def detail(p: Parameters, token: int, candidates: Mapping[int, Any]) -> TokenDetail:
    """What the request asks about a token, from vLLM's candidates by id, the token among them."""
    best = sorted((item.rank, id_, item.logprob) for id_, item in candidates.items() if item.rank <= p.top_n)
    top = [(id_, logprob if p.logprobs else 0.0) for _, id_, logprob in best if logprob > -math.inf]
    own = candidates[token]
    return TokenDetail(token, own.logprob if p.logprobs else 0.0, own.rank if p.ranks else 0, top)


def prompt_details(p: Parameters, tokens: Sequence[int], positions: Sequence[Mapping[int, Any] | None],
                   ) -> list[TokenDetail]:
    """The same for the input tokens; the first one has no prediction."""
    return [TokenDetail(token, math.nan if p.logprobs else 0.0) if candidates is None else detail(p, token, candidates)
            for token, candidates in zip(tokens, positions, strict=True)]


async def _make(folder: Path, settings: Settings) -> Any:
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    import torch
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM  # type: ignore[import-not-found]

    gpu = torch.cuda.is_available()
    if json.loads((folder / "config.json").read_text("utf-8")).get("is_encoder_decoder"):
        raise ValueError("encoder-decoder models are not served by this engine")
    return AsyncLLM.from_engine_args(AsyncEngineArgs(
        model=str(folder), tokenizer=str(folder), skip_tokenizer_init=True, load_format="safetensors",
        trust_remote_code=False, dtype=(settings.dtype or "auto") if gpu else "float32",
        max_model_len=settings.max_sequence_length, max_num_seqs=settings.max_batch_size,
        logprobs_mode="processed_logprobs", enforce_eager=not gpu, disable_log_stats=True))
