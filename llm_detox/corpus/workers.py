"""The processes that work on pieces, each with one thread, and with models of its own.

Only a few pieces are handed out at a time, so that reading never runs far ahead of the work.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

from llm_detox.corpus.formats import Layout
from llm_detox.corpus.reading import Piece
from llm_detox.corpus.work import Cleaner, Outcome
from llm_detox.errors import DetoxError
from llm_detox.processes import environment
from llm_detox.recipe import Recipe

_AHEAD = 2  # pieces for each worker: one that it works on, and the next
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | {
    "TOKENIZERS_PARALLELISM": "false"}
_TOXIC = "What a stupid idea, you moron."  # rewritten first, where the time counts
_cleaner: list[Cleaner] = []  # of this process


def cleaned(recipe: Recipe, pieces: Iterable[tuple[Piece, Layout]], workers: int, *,
            warm: bool = False) -> Iterator[tuple[Piece, Outcome]]:
    """What becomes of the pieces, each as soon as it is done.

    Args:
        workers: how many processes.
        warm: load all models before the first piece.

    Raises:
        DetoxError: of a piece, or a process was ended from outside.
    """
    with environment(_ONE_THREAD), ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_begin,
            initargs=(recipe, warm)) as pool:
        waiting: dict[Future[Outcome], Piece] = {}
        try:
            for piece, layout in pieces:
                waiting[pool.submit(_clean, piece, layout)] = piece
                if len(waiting) >= _AHEAD * workers:
                    yield from _done(waiting)
            while waiting:
                yield from _done(waiting)
        except BrokenProcessPool as error:
            raise DetoxError("a worker was ended from outside", place="--workers", remedy="look for messages of the "
                             "system (out of memory), take fewer workers, and run it again: it goes on from here",
                             ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _done(waiting: dict[Future[Outcome], Piece]) -> Iterator[tuple[Piece, Outcome]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


def _begin(recipe: Recipe, warm: bool) -> None:
    import torch

    from llm_detox.progress import one_voice
    from llm_detox.rephrase.build import MethodFactory

    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_voice()
    torch.set_num_threads(1)
    workshop = MethodFactory(recipe)
    _cleaner[:] = [Cleaner(workshop, recipe.detoxify.toxic_threshold)]
    if warm:
        workshop.chain.run_scored([{"id": "", "text": _TOXIC}], [1.0])


def _end_with_parent() -> None:
    """A killed parent cannot end its workers."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _clean(piece: Piece, layout: Layout) -> Outcome:
    return _cleaner[0].clean(piece, layout)
