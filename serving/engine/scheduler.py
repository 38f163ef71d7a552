"""Continuous batching: requests join the running batch between two tokens and leave it as soon as they are done."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llm_detox.generation.next_token import OFF, PromptDetails, Sampler, detail
from llm_detox.generation.tokens import Vocabulary
from serving.engine.backend_transformers import PromptFailed, Rows
from serving.engine.continuation import Continuation
from serving.engine.jobs import NOT_FINISHED, TIME_LIMIT, Job, Update
from serving.engine.metrics import Metrics
from serving.engine.validation import Parameters

log = logging.getLogger(__name__)

_STUCK_SECONDS = 300.0


class Running(Continuation):
    """A request in the batch, with what chooses its tokens."""

    def __init__(self, job: Job, vocabulary: Vocabulary, eos: frozenset[int]) -> None:
        super().__init__(job, vocabulary, eos)
        self.sampler = Sampler(job.parameters, job.ids, eos)
        self.token = -1

    @property
    def final_length(self) -> int:
        return len(self.job.ids) + self.parameters.max_new_tokens

    def take(self, token: int, scores: Tensor | None) -> None:
        """Take the token chosen from these scores; None where they were not needed."""
        self.token = token
        self.sampler.took(token)
        details = None
        if scores is not None and self.parameters.generated_tokens:
            details = detail(self.parameters, token, scores)
        self.accept(token, details)


class Scheduler:
    """Owns the model's batch; everything that touches it runs on one thread.

    Args:
        rows: the batch.
        vocabulary: for text.
        eos: ids that end a sequence.
        budget: tokens that the cache may hold: rows times the longest row's final length.
        prefill_tokens: prompt tokens run between two steps of the others, so that long prompts do not stall them.
        prefill_padding: the share of padding that prompts run together may have.
    """

    def __init__(self, rows: Rows, vocabulary: Vocabulary, eos: frozenset[int], metrics: Metrics, *, budget: int,
                 prefill_tokens: int = 2048, prefill_padding: float = 0.2) -> None:
        self._rows, self._vocabulary, self._eos, self._metrics = rows, vocabulary, eos, metrics
        self._budget, self._prefill_tokens, self._padding = budget, prefill_tokens, prefill_padding
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._entering: list[Running] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._generates = False
        self._turned = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="scheduler", daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether the last step worked and none is stuck."""
        stuck = self._running and time.monotonic() - self._turned > _STUCK_SECONDS
        return self._generates and self._thread.is_alive() and not stuck

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the step in progress; what is unfinished fails."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def refusal(self, parameters: Parameters) -> str | None:
        """This engine follows every parameter."""
        return None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue requests; their news comes through `deliver`."""
        queued = [Running(job, self._vocabulary, self._eos) for job in jobs]
        with self._wake:
            if self._stopping:
                raise RuntimeError("the engine has stopped")
            self._waiting.extend(queued)
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Give the request's place to others. No further news of it comes."""
        job.cancelled = True

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._running or self._stopping):
                    self._wake.wait()
                if self._stopping:
                    break
            self._turned = time.monotonic()
            try:
                self._turn()
            except Exception as error:  # the engine outlives any one batch
                log.exception("a step failed; its requests end with an error")
                self._fail([*self._running, *self._entering], error)
                self._running = []
                self._rows.clear()
        self._fail([*self._running, *self._waiting], RuntimeError("the server is stopping"))
        self._rows.clear()

    @torch.inference_mode()
    def _turn(self) -> None:
        self._leave(lambda running: running.job.cancelled)
        self._entering = self._joining()
        for group in self._grouped(self._entering):
            self._prefill(group)
        self._leave(lambda running: running.reason != NOT_FINISHED)
        if self._running:
            started = time.monotonic()
            self._take(self._running, self._rows.step([running.token for running in self._running]))
            self._metrics.stepped("next_token", len(self._running), time.monotonic() - started)
            self._leave(lambda running: running.reason != NOT_FINISHED)
        self._generates = True
        self._metrics.batch(len(self._running), sum(len(r.job.ids) + r.count for r in self._running),
                            len(self._waiting))

    def _joining(self) -> list[Running]:
        """Who joins now."""
        chosen: list[Running] = []
        tokens = 0
        with self._wake:
            longest = max((running.final_length for running in self._running), default=0)
            while self._waiting and len(self._running) + len(chosen) < self._rows.limit:
                candidate = self._waiting[0]
                job = candidate.job
                if job.cancelled or self._expired(job):
                    self._waiting.popleft()
                    continue
                count = len(self._running) + len(chosen) + 1
                most = max(longest, candidate.final_length)
                if count > 1 and count * most > self._budget:
                    break
                if chosen and tokens + len(job.ids) > self._prefill_tokens:
                    break
                self._waiting.popleft()
                longest, tokens = most, tokens + len(job.ids)
                chosen.append(candidate)
                self._metrics.waited(time.monotonic() - job.queued)
            for waiting in self._waiting:
                waiting.job.passed_over = True
        return chosen

    def _expired(self, job: Job) -> bool:
        """Whether the time limit went by in the queue; a request that has not waited gets at least one token."""
        deadline = job.parameters.deadline
        if not job.passed_over or deadline is None or time.monotonic() <= deadline:
            return False
        job.deliver(Update(reason=TIME_LIMIT))
        return True

    def _grouped(self, chosen: list[Running]) -> list[list[Running]]:
        """Groups of prompts of like length, which run together."""
        groups: list[list[Running]] = []
        for running in sorted(chosen, key=lambda r: len(r.job.ids), reverse=True):
            size = len(running.job.ids)
            if groups and not running.parameters.input_tokens and not groups[-1][0].parameters.input_tokens:
                group = groups[-1]
                longest = len(group[0].job.ids)
                real = sum(len(r.job.ids) for r in group) + size
                if 1 - real / (longest * (len(group) + 1)) <= self._padding:
                    group.append(running)
                    continue
            groups.append([running])
        return groups

    def _prefill(self, group: list[Running]) -> None:
        started = time.monotonic()
        first = group[0]
        prompt = PromptDetails(first.parameters, first.job.ids) if first.parameters.input_tokens else None
        try:
            logits = self._rows.add([running.job.ids for running in group], watch=prompt.watch if prompt else None)
        except PromptFailed as error:  # the running ones are unharmed; which of these is to blame shows one by one
            if len(group) == 1:
                self._fail(group, error)
            else:
                for running in group:
                    self._prefill([running])
            return
        self._running.extend(group)
        if prompt is not None:
            first.read_prompt(prompt.details)
        self._take(group, logits)
        self._metrics.stepped("prefill", len(group), time.monotonic() - started)

    def _take(self, rows: list[Running], logits: Tensor) -> None:
        """Choose and hand out the next token of each row by logits [rows, v]."""
        for index, running in enumerate(rows):
            if running.sampler.plain and running.sampler.ruled_out:
                logits[index, running.sampler.ruled_out] = OFF  # row by row, scores would cost as much as a layer
        best = logits.argmax(-1)
        scores: list[Tensor | None] = [None] * len(rows)
        for index, running in enumerate(rows):
            if not running.sampler.plain:
                scores[index] = changed = running.sampler.scores(logits[index])
                best[index] = running.sampler.choose(changed)
        for running, token, row_scores in zip(rows, best.tolist(), scores, strict=True):
            try:
                running.take(token, row_scores)
            except Exception as error:  # one request's text or details must not end the others
                log.exception("a token could not be handed out")
                running.fail(error)

    def _leave(self, done: Callable[[Running], bool]) -> None:
        for index in range(len(self._running) - 1, -1, -1):
            if done(self._running[index]):
                self._rows.drop(index)
                last = self._running.pop()
                if index < len(self._running):
                    self._running[index] = last

    def _fail(self, rows: Sequence[Running], error: Exception) -> None:
        self._generates = False
        for running in rows:
            running.fail(error)
