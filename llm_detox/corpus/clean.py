"""The command `clean-corpus`: a corpus in, the same corpus without toxic text out.

The corpus is read from its beginning in every run, which costs little against the work; pieces that are done are passed
over. What decides a record is its piece, the recipe and, with deduplication, what came before it: never the number of
workers, nor where an earlier run ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from llm_detox.corpus.duplicates import Repetitions
from llm_detox.corpus.formats import Layout, layout_of
from llm_detox.corpus.inputs import CorpusFile, corpus_files
from llm_detox.corpus.page import page
from llm_detox.corpus.parts import Parts
from llm_detox.corpus.reading import PIECE, Piece, pieces
from llm_detox.corpus.statistics import Statistics
from llm_detox.corpus.work import Outcome
from llm_detox.corpus.workers import cleaned
from llm_detox.errors import UsageError
from llm_detox.progress import Task, say, task
from llm_detox.recipe import Recipe
from llm_detox.runs.folders import StepFolder, step_folder

STATISTICS, PAGE = "statistics.json", "statistics.html"
_WORK, _SEEN = "parts", "seen.sqlite"
_UNIT = 1024


@dataclass(frozen=True)
class CorpusSettings:
    """How a corpus is worked on.

    Attributes:
        text: the column that holds the text.
        deduplicate: leave out records whose text came before.
        workers: processes; they do not decide the content.
        piece: records that are worked on together.
    """

    text: str = "text"
    deduplicate: bool = False
    workers: int = 1
    piece: int = PIECE


@dataclass(frozen=True)
class CorpusResult:
    """What became of the corpus; see `llm_detox.corpus.statistics.Figures`."""

    files: int
    lines: int
    written: int
    kept: int
    rewritten: int
    dropped: int
    foreign: int
    unscored: int
    repeated: int
    unreadable: int
    share_toxic: float | None


def clean_corpus(recipe: Recipe, source: str, output: Path, settings: CorpusSettings) -> CorpusResult:
    """Write the corpus again without toxic text.

    Args:
        source: see `llm_detox.corpus.inputs.corpus_files`.
        output: the folder to write: the files of the corpus under their names, `statistics.json` and
            `statistics.html`.

    Raises:
        UsageError: there is no corpus, or a file has no such column.
        DetoxError: a file is damaged, most records of a piece cannot be read, or a model cannot be loaded.
    """
    if str(output).startswith("s3:"):
        raise UsageError("the output is a folder of this machine", place=str(output),
                         remedy="write to a folder, and send it to the store after that")
    files, others = corpus_files(source)
    decides = {**recipe.settings("detoxify", "scoring", "model"), "text": settings.text,
               "deduplicate": settings.deduplicate, "piece": settings.piece}
    with step_folder(output, "clean-corpus", settings=decides, inputs={file.name: file.path for file in files},
                     resumable=True) as folder:
        statistics = _Run(recipe, files, folder, settings).statistics()
        statistics.not_read = others
        (folder / STATISTICS).write_text(json.dumps(statistics.as_dict(), indent=2, ensure_ascii=False), "utf-8")
        (folder / PAGE).write_text(page(statistics, recipe), "utf-8")
        total = statistics.total
        result = CorpusResult(len(files), total.lines, total.written, total.kept, total.rewritten, total.dropped,
                              total.foreign, total.unscored, total.repeated, total.unreadable, total.share_toxic)
        folder.counts = {"records": total.lines, "written": total.written}
        folder.finish(result)
    for name in others[:3]:
        say(f"{name}: not read, its format is not known")
    return result


class _Run:
    """One run over a corpus, which may go on with the work of an earlier one."""

    def __init__(self, recipe: Recipe, files: Sequence[CorpusFile], folder: StepFolder,
                 settings: CorpusSettings) -> None:
        self._recipe, self._files, self._folder, self._settings = recipe, files, folder, settings
        self._parts = Parts(folder.work_file(_WORK))
        self._counts: dict[int, tuple[int, bytes]] = {}  # file -> its pieces and its header, known at its end
        self._done: dict[int, int] = {}  # file -> pieces that are done
        self._lines = self._rewritten = self._bytes = 0

    def statistics(self) -> Statistics:
        """Clean all that is not clean yet; the figures of the whole."""
        total = sum(file.bytes for file in self._files)
        with ExitStack() as stack:
            seen = stack.enter_context(Repetitions(self._folder.work_file(_SEEN))) if self._settings.deduplicate \
                else None
            work = stack.enter_context(task("clean-corpus", total // _UNIT, "KiB"))
            for piece, outcome in cleaned(self._recipe, self._open_pieces(seen, work), self._settings.workers):
                self._parts.write(piece.file, piece.number, outcome)
                self._show(work, piece, outcome)
                self._piece_done(piece.file)
        return self._summed()

    def _open_pieces(self, seen: Repetitions | None, work: Task) -> Iterator[tuple[Piece, Layout]]:
        """The pieces that no run has done, each with the layout of its file."""
        for number, file in enumerate(self._files):
            joined = self._parts.joined(number) is not None
            if joined and seen is None:
                work.skip(self._units(file.bytes))
                continue
            count, header = 0, b""
            layout: Layout | None = None
            for read in pieces(file, number, self._settings.piece):
                layout = layout or layout_of(file, self._settings.text, read.header)
                piece = seen.marked(read, layout) if seen else read
                count, header = count + 1, read.header
                if joined or self._parts.has(number, piece.number):
                    work.skip(self._units(piece.read_bytes))
                    self._done[number] = self._done.get(number, 0) + 1
                else:
                    yield piece, layout
            if not joined:
                self._counts[number] = (count, header)
                self._join_if_done(number)

    def _show(self, work: Task, piece: Piece, outcome: Outcome) -> None:
        self._lines += outcome.figures.lines
        self._rewritten += outcome.figures.rewritten
        work.advance(self._units(piece.read_bytes), f"{self._lines} lines, {self._rewritten} rewritten")

    def _units(self, count: int) -> int:
        """These bytes in whole units, what is over being kept for the next."""
        before = self._bytes // _UNIT
        self._bytes += count
        return self._bytes // _UNIT - before

    def _piece_done(self, file: int) -> None:
        self._done[file] = self._done.get(file, 0) + 1
        self._join_if_done(file)

    def _join_if_done(self, number: int) -> None:
        count, header = self._counts.get(number, (-1, b""))
        if self._done.get(number, 0) == count:
            file = self._files[number]
            self._parts.join(number, file, count, self._folder / file.name, header)
            del self._counts[number]

    def _summed(self) -> Statistics:
        statistics = Statistics(self._recipe.scoring.training.kind, self._recipe.detoxify.toxic_threshold)
        for number, file in enumerate(self._files):
            joined = self._parts.joined(number)
            if joined is None:
                raise AssertionError(f"{file.name} was not joined")
            figures, examples, problem = joined
            statistics.add(file.name, figures, examples)
            if problem:
                say(f"{file.name}: {figures.unreadable} lines cannot be read and are left out, the first: {problem}")
        return statistics
