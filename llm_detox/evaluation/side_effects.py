"""What a change of the model may cost elsewhere: knowledge, other kinds of text, and how it speaks of people.

Everything is read by the likelihood of given texts, so arms are compared question by question and text by text:

- capabilities: of a question's answers the one with the least loss a character counts as the model's answer (the
  length-normalised rule of Brown et al. 2020, section 2.4);
- registers: perplexity on texts of one kind;
- stereotypes: of two sentences that differ in what they say of a group, the likelier one (Nangia et al. 2020;
  Nadeem et al. 2021);
- mentions: by how many nats a token sentences about people of some group are read worse than the same sentences about
  others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice, product
from pathlib import Path
from typing import TypeVar

import numpy as np

from llm_detox.data.prepare import table_texts, text_in
from llm_detox.data.records import Record, clean_text, hash_fraction
from llm_detox.data.sources import column, read_rows
from llm_detox.errors import DetoxError
from llm_detox.evaluation.compare import difference_interval, loss_ratio
from llm_detox.evaluation.fluency import perplexity
from llm_detox.evaluation.intervals import (
    Bootstrap,
    Floats,
    Interval,
    mean_interval,
    percentile_interval,
    resampled_means,
)
from llm_detox.evaluation.report_content import PairedChange, SideEffectCell, SideEffectKind, SideEffectRow
from llm_detox.evaluation.results import Evaluation, SideEffects, SideEffectValues
from llm_detox.generation.generators import ReadingGenerator, variant_losses
from llm_detox.generation.trees import Loss
from llm_detox.progress import task
from llm_detox.recipe.evaluation import ChoiceTable, RegisterTable, SentencePairs, SideEffectsSection
from llm_detox.recipe.files import parse_yaml

MENTIONS = Path(__file__).parent / "mentions.yaml"
_LETTER = re.compile(r"[A-Z][.)] ")
SIDE_EFFECT_TITLES: dict[SideEffectKind, str] = {
    "capability": "right answers", "register": "perplexity", "stereotype": "prejudices that are the likelier",
    "mentions": "gap of mentions, nats a token"}
T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A question with its answers; `right` is the place of the right one."""

    text: str
    options: tuple[str, ...]
    right: int


def measure_side_effects(settings: SideEffectsSection, generator: ReadingGenerator,
                         bootstrap: Bootstrap) -> tuple[SideEffects, SideEffectValues]:
    """Read everything that the recipe names.

    Args:
        generator: of the arm.
        bootstrap: of the intervals, over questions, texts and sentences.

    Returns:
        The figures, and the values behind them by which arms are paired.

    Raises:
        DetoxError: a table cannot be read, or has no usable record.
    """
    questions = {name: choose_questions(table) for name, table in settings.capabilities.items()}
    registers = {name: _choose_texts(table) for name, table in settings.registers.items()}
    pairs = {name: _choose_pairs(table) for name, table in settings.stereotypes.items()}
    mentions = mention_pairs(settings.mentions)
    groups = [_variants(question) for some in questions.values() for question in some]
    texts = [*(text for some in registers.values() for text in some),
             *(text for some in [*pairs.values(), mentions] for pair in some for text in pair)]
    with task("reading for side effects", len(texts) + sum(map(len, groups)), "texts") as work:
        answers = iter(variant_losses(generator, groups, work.advance))
        losses = iter(generator.losses(texts, on_progress=work.advance))
    values = SideEffectValues(
        capabilities={name: [_is_right(question, next(answers)) for question in some]
                      for name, some in questions.items()},
        registers={name: list(islice(losses, len(some))) for name, some in registers.items()},
        stereotypes={name: [_first_is_likelier(losses) for _ in some] for name, some in pairs.items()},
        mentions=[(*next(losses), *next(losses)) for _ in mentions])
    return summarise_side_effects(values, bootstrap), values


def summarise_side_effects(values: SideEffectValues, bootstrap: Bootstrap) -> SideEffects:
    """The figures with their intervals."""
    return SideEffects(
        capabilities={name: mean_interval(np.array(some, dtype=np.float64), bootstrap)
                      for name, some in values.capabilities.items()},
        registers={name: perplexity(some, bootstrap) for name, some in values.registers.items()},
        stereotypes={name: mean_interval(np.array(some, dtype=np.float64), bootstrap)
                     for name, some in values.stereotypes.items()},
        mention_gap=percentile_interval(
            float((gaps := mention_gaps(np.array(values.mentions, dtype=np.float64), bootstrap))[0]), gaps[1:],
            len(values.mentions), bootstrap.confidence) if values.mentions else None)


def mention_gaps(rows: Floats, bootstrap: Bootstrap) -> Floats:
    """How much worse the sentences about groups are read, in nats a token: of all rows, then of each resample.

    Args:
        rows: [sentences, 4] loss and tokens of a sentence about a group, and of the same about others.
    """
    sums = np.concatenate([rows.mean(axis=0, keepdims=True), resampled_means(rows, bootstrap)])
    return np.asarray(sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3], dtype=np.float64)


def choose_questions(table: ChoiceTable) -> list[Question]:
    """Questions whose right answer is one of their options, chosen by hash."""
    usable = (question for place, record in read_rows(table) if (question := _question(table, record, place)))
    return _choose(usable, lambda question: question.text, table.count, table.source)


def _question(table: ChoiceTable, record: Record, place: str) -> Question | None:
    """None for one whose right answer is not among its options, or that has but one."""
    names = [name for name in (table.passage_column, table.question_column) if name]
    asked = " ".join(clean_text(text_in(record, name, place)) for name in names)
    options = tuple(_option(line) for line in text_in(record, table.options_column, place).splitlines() if line.strip())
    answer = column(record, table.answer_column, place)
    right = _option(str(answer[0] if isinstance(answer, list) and answer else answer))
    if right not in options or len(set(options)) < 2:
        return None
    return Question(f"Question: {asked}\nAnswer:", options, options.index(right))


def _option(line: str) -> str:
    return clean_text(_LETTER.sub("", line.strip(), count=1))


def _variants(question: Question) -> list[str]:
    """The question alone, then with each answer."""
    return [question.text, *(f"{question.text} {option}" for option in question.options)]


def _is_right(question: Question, losses: Sequence[Loss]) -> bool:
    asked, *answered = (loss for loss, _ in losses)
    by_length = [(loss - asked) / len(option) for loss, option in zip(answered, question.options, strict=True)]
    return by_length.index(min(by_length)) == question.right


def _first_is_likelier(losses: Iterator[Loss]) -> bool:
    (first, _), (second, _) = next(losses), next(losses)
    return first < second


def _choose_texts(table: RegisterTable) -> list[str]:
    texts = (text for _, text in table_texts(table, table.max_chars) if text)
    return _choose(texts, str, table.count, table.source)


def _choose_pairs(table: SentencePairs) -> list[tuple[str, str]]:
    names = (table.stereotype_column, table.other_column)
    pairs = ((clean_text(text_in(record, names[0], place)), clean_text(text_in(record, names[1], place)))
             for place, record in read_rows(table))
    return _choose(((first, second) for first, second in pairs if first and second and first != second),
                   " ".join, table.count, table.source)


def mention_pairs(count: int) -> list[tuple[str, str]]:
    """(sentence about somebody of a group, the same about somebody else), of the packaged ones, chosen by hash."""
    if not count:
        return []
    packaged = parse_yaml(MENTIONS.read_text("utf-8"), str(MENTIONS))
    people = list(zip(packaged["people"], packaged["others"], strict=True))
    pairs = [(_sentence(sentence, group), _sentence(sentence, other))
             for sentence, (group, other) in product(packaged["sentences"], people)]
    return _choose(pairs, " ".join, count, str(MENTIONS))


def _sentence(sentence: str, person: str) -> str:
    text = sentence.replace("{person}", person)
    return text[0].upper() + text[1:]


def _choose(items: Iterable[T], text_of: Callable[[T], str], count: int, source: str) -> list[T]:
    """Those with the lowest hashes, equal texts once.

    Raises:
        DetoxError: there is none.
    """
    unique = {text_of(item): item for item in items}
    if not unique:
        raise DetoxError("no record can be used", place=source,
                         remedy="look at the columns that evaluation.side_effects names")
    return [unique[text] for text in nsmallest(count, unique, key=lambda text: hash_fraction(text, "side effects"))]


def side_effect_changes(ours: SideEffectValues, theirs: SideEffectValues,
                        bootstrap: Bootstrap) -> dict[tuple[SideEffectKind, str], PairedChange]:
    """What changed, in the order of the recipe: of registers our perplexity over theirs, else ours minus theirs.

    Questions, texts and sentences are paired. What the two did not read alike is left out.
    """
    changes: dict[tuple[SideEffectKind, str], PairedChange] = {}
    shares: tuple[tuple[SideEffectKind, dict[str, list[bool]], dict[str, list[bool]]], ...] = (
        ("capability", ours.capabilities, theirs.capabilities), ("stereotype", ours.stereotypes, theirs.stereotypes))
    for kind, left, right in shares:
        for name in left:
            if len(left[name]) == len(right.get(name, [])):
                difference = np.array(left[name], dtype=np.float64) - np.array(right[name], dtype=np.float64)
                interval = difference_interval(difference, bootstrap)
                changes[kind, name] = PairedChange(**vars(interval), count=len(difference))
    for name in ours.registers:
        left_rows, right_rows = (np.array(arm.registers.get(name, []), dtype=np.float64) for arm in (ours, theirs))
        ratio = loss_ratio(left_rows, right_rows, bootstrap)
        if ratio:
            changes["register", name] = ratio
    if ours.mentions and len(ours.mentions) == len(theirs.mentions):
        gaps, others = (mention_gaps(np.array(arm.mentions, dtype=np.float64), bootstrap) for arm in (ours, theirs))
        rises = gaps - others
        changes["mentions", MENTIONS.stem] = PairedChange(**vars(percentile_interval(
            float(rises[0]), rises[1:], len(ours.mentions), bootstrap.confidence)), count=len(ours.mentions))
    return changes


def side_effect_rows(arms: Mapping[str, Evaluation], bootstrap: Bootstrap) -> list[SideEffectRow]:
    """Every measure in every arm, with its change to the first arm."""
    first = next(iter(arms.values()))
    changes = {arm: side_effect_changes(one.side_effects, first.side_effects, bootstrap)
               for arm, one in arms.items() if one is not first and one.side_effects and first.side_effects}
    values = {arm: _values_of(one.report.side_effects) for arm, one in arms.items() if one.report.side_effects}
    measures = dict.fromkeys(measure for some in values.values() for measure in some)
    return [SideEffectRow(kind=kind, name=name, cells=[
        SideEffectCell(arm=arm, value=some[kind, name], change=changes.get(arm, {}).get((kind, name)))
        for arm, some in values.items() if (kind, name) in some]) for kind, name in measures]


def worst_register(rows: Sequence[SideEffectRow], arm: str) -> tuple[str, PairedChange] | None:
    """The register on which an arm's perplexity rose most against the first arm's, and by how much."""
    ratios = [(row.name, cell.change) for row in rows if row.kind == "register"
              for cell in row.cells if cell.arm == arm and cell.change]
    return max(ratios, key=lambda ratio: ratio[1].value, default=None)


def _values_of(effects: SideEffects) -> dict[tuple[SideEffectKind, str], Interval]:
    groups: tuple[tuple[SideEffectKind, Mapping[str, Interval]], ...] = (
        ("capability", effects.capabilities), ("register", effects.registers), ("stereotype", effects.stereotypes))
    values = {(kind, name): interval for kind, some in groups for name, interval in some.items()}
    return values | ({("mentions", MENTIONS.stem): effects.mention_gap} if effects.mention_gap else {})
