"""Preference pairs: rewrite against original, and the model's own continuations, best against worst.

A pair from samples (Rafailov et al. 2023, on-policy) teaches what to avoid in the model's own words; its chosen
text is the model's own too, so preferring it costs little fluency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llm_detox.data.records import Record, read_jsonl, text_of
from llm_detox.data.sources import column, read_rows
from llm_detox.errors import DetoxError
from llm_detox.generation.chat import apply_template, without_first
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import sample_continuations
from llm_detox.progress import say, task
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.recipe.scorers import ScorerSection
from llm_detox.recipe.training import DpoSection, PairTable
from llm_detox.scoring.load import load_scorer
from llm_detox.training.encoding import render_chat

REWRITE, SAMPLED, GIVEN = "rewrite", "sampled", "given"  # where a pair comes from
_LEAST_CHOSEN_CHARS = 12  # an (almost) empty continuation is harmless, but not worth learning


@dataclass(frozen=True)
class Pair:
    """`prompt + chosen` is to be preferred to `prompt + rejected`; `margin` is how much less toxic it is.

    `ends`: both are whole answers, after which the text ends; a sampled continuation was cut off instead.
    """

    prompt: str
    chosen: str
    rejected: str
    margin: float
    source: str
    ends: bool = False

    def as_record(self) -> Record:
        return asdict(self)


def make_pairs(dpo: DpoSection, *, adapter: Path, records: Path | None, prompts: Path | None,
               sampling: SamplingSection, scorer: ScorerSection, seed: int) -> list[Pair]:
    """The preference pairs of a run: from the audit trail, from sets made elsewhere, and from samples of the model.

    Args:
        dpo: how many of each kind.
        adapter: the start model's folder.
        records: detoxify's records.
        prompts: what the start model continues, `sampling` says how and `seed` which continuations.
        scorer: of the continuations.

    Raises:
        DetoxError: not one pair could be made, or what they are to be made of was not given.
    """
    pairs: list[Pair] = []
    if dpo.rewrite_pairs:
        path = _required(records, "records", "rewrite_pairs")
        pairs += rewrite_pairs(read_jsonl(path), dpo.rewrite_pairs, place=str(path))
    pairs += given_pairs(dpo.pairs, load_tokenizer(adapter)) if dpo.pairs else []
    pairs += _pairs_from_samples(dpo, adapter, prompt_texts(_required(prompts, "prompts", "max_pairs")),
                                 sampling, scorer, seed) if dpo.max_pairs else []
    if not pairs:
        raise _no_pairs(dpo, records, prompts)
    names = {REWRITE: "rewrite against original"}
    say("preference pairs: " + ", ".join(
        f"{count} {names.get(kind, kind)}" for kind, count in pair_counts(pairs, dpo).items()))
    return pairs


def pair_counts(pairs: Sequence[Pair], dpo: DpoSection) -> dict[str, int]:
    """The number of pairs of each kind that the section asks for."""
    kinds = [REWRITE, SAMPLED, *([GIVEN] if dpo.pairs else [])]
    return {kind: sum(pair.source == kind for pair in pairs) for kind in kinds}


def _required(path: Path | None, what: str, setting: str) -> Path:
    if path is None:
        raise DetoxError(f"no {what} to make preference pairs of", place=f"training.dpo.{setting}",
                         remedy=f"give --{what}, or set it to 0")
    return path


def _no_pairs(dpo: DpoSection, records: Path | None, prompts: Path | None) -> DetoxError:
    """What was tried, and what helps there."""
    reasons, remedies = [], []
    if dpo.rewrite_pairs:
        reasons.append("no rewritten record begins as its original")
        remedies.append("give records that detoxify rewrote")
    if dpo.max_pairs:
        reasons.append(f"no continuation was {dpo.margin:g} less toxic than another")
        remedies.append("give more or more provoking prompts, or lower training.dpo.margin")
    return DetoxError("no preference pair could be made: " + ("; ".join(reasons) or "no source of pairs is on"),
                      place=str((prompts if dpo.max_pairs else records) or "training.dpo"), remedy="; or ".join(
                          remedies or ["set training.dpo.max_pairs, rewrite_pairs or pairs, or enabled: false"]))


def _pairs_from_samples(dpo: DpoSection, adapter: Path, prompts: list[str], sampling: SamplingSection,
                        scorer: ScorerSection, seed: int) -> list[Pair]:
    model, k = load_model(adapter), dpo.samples_per_prompt
    with task("sampling for pairs", len(prompts) * k, "continuations") as work:
        continuations = sample_continuations(model, load_tokenizer(adapter), prompts, k=k, sampling=sampling, seed=seed,
                                             on_progress=work.advance)
    del model
    scores = load_scorer(scorer).score([text for texts in continuations for text in texts])
    return sampled_pairs(prompts, continuations, [scores[start: start + k] for start in range(0, len(scores), k)], dpo)


def rewrite_pairs(records: Iterable[Record], limit: int, *, place: str = "records") -> list[Pair]:
    """Pairs from detoxify's audit trail: the rewrite is chosen, the original rejected.

    The prompt is what both begin with, in whole words; where that is nothing (or all), no pair is made, since the
    rest would be judged without its beginning.

    Args:
        records: with `text`, `original` and `action`; only rewritten ones count.
        limit: at most so many, those whose toxicity falls most.
        place: of the records, for errors.

    Raises:
        DetoxError: they are no records of detoxify.
    """
    pairs: list[Pair] = []
    for number, record in enumerate(records, start=1):
        at = f"{place}, record {number}"
        if text_of(record, "action", at) == "rewritten" and not is_answer(record) and (
                pair := _rewrite_pair(record, at)):
            pairs.append(pair)
    return sorted(pairs, key=lambda pair: -pair.margin)[:limit]


def is_answer(record: Record) -> bool:
    """Whether the record's text is an answer, whose request stands in other fields."""
    return "messages" in record or "completion" in record


def _rewrite_pair(record: Record, place: str) -> Pair | None:
    new, old = (text_of(record, name, place).split() for name in ("text", "original"))
    shared = 0
    while shared < min(len(new), len(old)) and new[shared] == old[shared]:
        shared += 1
    if shared == 0 or shared == len(new) or shared == len(old):
        return None
    prompt = " ".join(old[:shared])
    chosen, rejected = (" " + " ".join(words[shared:]) for words in (new, old))
    return Pair(prompt, chosen, rejected, _fall(record.get("scores")), REWRITE)


def _fall(scores: object) -> float:
    """By how much the toxicity fell; 0 where it is not known."""
    if not isinstance(scores, dict):
        return 0.0
    before, after = (scores.get(name) for name in ("toxicity_before", "toxicity_after"))
    return float(before) - float(after) if isinstance(before, int | float) and isinstance(after, int | float) else 0.0


def sampled_pairs(
    prompts: Sequence[str], continuations: Sequence[Sequence[str]], scores: Sequence[Sequence[float | None]],
    settings: DpoSection,
) -> list[Pair]:
    """Pair each prompt's least toxic continuations with its most toxic ones.

    Args:
        prompts: N prompts.
        continuations: for each prompt, k texts.
        scores: the toxicity of each, in [0, 1]; None where the scorer gave none (such texts are left out).
        settings: `margin`, `pairs_per_prompt` and `max_pairs` count.

    Returns:
        At most `max_pairs` pairs, those of the greatest margin first.
    """
    pairs: list[Pair] = []
    for prompt, texts, values in zip(prompts, continuations, scores, strict=True):
        rated = sorted((value, text) for text, value in zip(texts, values, strict=True) if value is not None)
        harmless = [(value, text) for value, text in rated if len(text.strip()) >= _LEAST_CHOSEN_CHARS]
        best_and_worst = list(zip(harmless, reversed(rated), strict=False))[: settings.pairs_per_prompt]
        pairs += [Pair(prompt, chosen, rejected, high - low, SAMPLED)
                  for (low, chosen), (high, rejected) in best_and_worst
                  if high - low >= settings.margin and chosen != rejected]
    return sorted(pairs, key=lambda pair: -pair.margin)[: settings.max_pairs]


def prompt_texts(path: Path) -> list[str]:
    """The prompts of a RealToxicityPrompts file, or of plain `{"prompt": "..."}` lines; says how many are empty.

    Raises:
        DetoxError: the file cannot be read, a prompt is no text, or there is none.
    """
    prompts, empty = [], 0
    for number, record in enumerate(read_jsonl(path, required=["prompt"]), start=1):
        place, prompt = f"{path}, record {number}", record["prompt"]
        text = text_of(prompt, "text", place) if isinstance(prompt, dict) else text_of(record, "prompt", place)
        if text.strip():
            prompts.append(text.strip())
        else:
            empty += 1
    if empty:
        say(f"{path}: {empty} of {len(prompts) + empty} prompts are empty and left out")
    if not prompts:
        raise DetoxError("no prompts", place=str(path), remedy='each line is {"prompt": {"text": "..."}}')
    return prompts


_LAST_ANSWER = "\n\nAssistant:"  # how Anthropic/hh-rlhf writes a conversation


def given_pairs(tables: list[PairTable], tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """The pairs of the tables, in their order; answers that are the same, and empty ones, make no pair.

    Chosen and rejected are texts, or conversations (lists of messages), which the tokenizer's chat template writes.

    Raises:
        DetoxError: a table cannot be read, a column is missing or holds neither, or a table holds no pair.
    """
    pairs: list[Pair] = []
    for table in tables:
        from_table = list(islice(_pairs_of(table, tokenizer), table.count))
        if not from_table:
            raise DetoxError("the preference set holds no pair", place=table.source,
                             remedy="name its columns in training.dpo.pairs")
        pairs += from_table
    return pairs


def _pairs_of(table: PairTable, tokenizer: PreTrainedTokenizerBase) -> Iterator[Pair]:
    for place, record in read_rows(table):
        chosen, rejected = (_as_text(column(record, name, place), tokenizer, place)
                            for name in (table.chosen_column, table.rejected_column))
        if table.prompt_column is None:
            prompt = _shared_beginning(chosen, rejected)
            chosen, rejected = chosen[len(prompt):], rejected[len(prompt):]
        else:
            prompt = _as_text(column(record, table.prompt_column, place), tokenizer, place, asks=True)
            chosen, rejected = (_answer(one, prompt) for one in (chosen, rejected))
        if prompt and chosen.strip() and rejected.strip() and chosen != rejected:
            yield Pair(prompt, chosen, rejected, 0.0, GIVEN, ends=True)


def _as_text(value: Any, tokenizer: PreTrainedTokenizerBase, place: str, *, asks: bool = False) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(one, dict) and "content" in one for one in value):
        return without_first(tokenizer, apply_template(tokenizer, value, asks=True)) if asks \
            else _conversation(tokenizer, value)
    raise DetoxError(f"the column holds neither text nor a conversation but {value!r:.40}", place=place,
                     remedy="name the right columns in training.dpo.pairs")


def _conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Record]) -> str:
    if len(messages) == 1 and messages[0].get("role") == "assistant":  # an answer alone; its prompt stands apart
        return str(messages[0]["content"])
    return without_first(tokenizer, render_chat(tokenizer, messages)[0])


def _answer(text: str, prompt: str) -> str:
    """What comes after the prompt, whether the column repeats it or not, with a space before it if none is there."""
    if text.startswith(prompt):
        return text[len(prompt):]
    return text if prompt[-1:].isspace() or text[:1].isspace() else f" {text}"


def _shared_beginning(one: str, other: str) -> str:
    """What both conversations begin with, up to where the last answer begins; else up to the last whole word."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    beginning = one[:shared]
    if (last := beginning.rfind(_LAST_ANSWER)) >= 0:
        return beginning[: last + len(_LAST_ANSWER)]
    return beginning[: beginning.rfind(" ")] if " " in beginning else ""
