"""The steps `train-experts` and `train-paraphraser`.

Experts learn to restore text of one class from text with holes (BART: text infilling as in Lewis et al. 2020,
spans of Poisson(3) words, 30 % masked), not to copy it; causal experts are LoRA adapters that learn to continue it.
A paraphraser learns rewrites from pairs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from llm_detox.data.records import read_jsonl
from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer, resolve_dtype, write_base_source
from llm_detox.recipe import Recipe
from llm_detox.recipe.rephrase import RephraserTrainingSection
from llm_detox.rephrase.fit import IGNORED, Row, fit
from llm_detox.rephrase.paraphrase import asked
from llm_detox.rephrase.paraphrase_pairs import read_pairs, teaching_pairs
from llm_detox.rephrase.print_style import as_printed
from llm_detox.rephrase.seq2seq import is_seq2seq, load_seq2seq, load_seq2seq_tokenizer
from llm_detox.runs.folders import StepFolder, step_folder

MASKED_SHARE = 0.3
MEAN_SPAN = 3.0
EXPERT, ANTI_EXPERT = "expert", "anti_expert"
MakeRow = Callable[[PreTrainedTokenizerBase, Any], Row]


def train_experts(recipe: Recipe, *, texts: Path, output: Path) -> dict[str, Any]:
    """Train an expert on the clean and an anti-expert on the toxic texts, each into a folder of `output`.

    Args:
        texts: JSON lines `{"text", "toxic": bool}`.
        output: with `expert/` and `anti_expert/`: models (seq2seq) or adapters (causal).

    Returns:
        for each of the two: texts, steps, first and last loss.

    Raises:
        DetoxError: a class has no text, or the model cannot be loaded.
    """
    how = recipe.rephraser_training
    classes: dict[str, list[str]] = {EXPERT: [], ANTI_EXPERT: []}
    for record in read_jsonl(texts, required=("text", "toxic")):
        classes[ANTI_EXPERT if record["toxic"] else EXPERT].append(str(record["text"]))
    for name, found in classes.items():
        if not found:
            raise DetoxError(f"no {'toxic' if name == ANTI_EXPERT else 'clean'} text for the {name}", place=str(texts),
                             remedy="the experts need records of both classes")
    rng = random.Random(recipe.seed)  # noqa: S311 - holes, not secrets
    with _training_folder(recipe, output, "experts", {"texts": texts}) as folder:
        for name, found in classes.items():
            make: MakeRow = (lambda words, text: infilling_row(words, text, rng, how.max_length)) \
                if is_seq2seq(_source(recipe)) else (lambda words, text: continuing_row(words, text, how.max_length))
            folder.counts[name] = len(found)
            folder.result[name] = {"texts": len(found), **_train(recipe, found, make, folder / name, name)}
        return folder.result


def train_paraphraser(recipe: Recipe, *, pairs: Path, output: Path) -> dict[str, Any]:
    """Train a model to say politely what a text says rudely.

    Args:
        pairs: tab separated without quoting, a header, the rude text first and its rewrites behind it (ParaDetox),
            or JSON lines `{"toxic", "neutral"}`.
        output: the model (seq2seq) or adapter (causal) to write.

    Raises:
        DetoxError: there are no pairs, none is within the bounds, or the model cannot be loaded.
    """
    how = recipe.rephraser_training
    found = [(rude, as_printed(polite) if how.tidy else polite)
             for rude, polite in teaching_pairs(recipe, read_pairs(pairs), str(pairs))]
    seq2seq = is_seq2seq(_source(recipe))
    make: MakeRow = (lambda words, pair: _seq2seq_pair(words, pair[0], pair[1], how.max_length)) if seq2seq \
        else (lambda words, pair: pair_row(words, pair[0], pair[1], how.max_length))
    with _training_folder(recipe, output, "paraphraser", {"pairs": pairs}) as folder:
        folder.counts["pairs"] = len(found)
        folder.result.update({"pairs": len(found)}, **_train(recipe, found, make, folder.path, "paraphraser"))
        return folder.result


def infilling_row(words: PreTrainedTokenizerBase, text: str, rng: random.Random, max_length: int) -> Row:
    """Text with spans of words replaced by one mask each, and the whole text as the target."""
    target: list[int] = words(text, truncation=True, max_length=max_length)["input_ids"]
    holed: list[int] = words(with_holes(text.split(), str(words.mask_token), rng), truncation=True,
                             max_length=max_length)["input_ids"]
    return Row(holed, target)


def with_holes(words: Sequence[str], mask: str, rng: random.Random) -> str:
    """Spans of Poisson(3) words, at least one, replaced by a mask until 30 % of the words are gone."""
    left = list(words)
    budget = max(1, round(MASKED_SHARE * len(words)))
    while budget > 0 and left:
        length = min(budget, max(1, _poisson(rng)))
        start = rng.randrange(max(1, len(left) - length + 1))
        if mask not in left[start: start + length]:
            left[start: start + length] = [mask]
            budget -= length
        elif all(mask in left[i: i + length] for i in range(max(1, len(left) - length + 1))):
            break  # no span of this length is left
    return " ".join(left)


def _poisson(rng: random.Random) -> int:
    limit, product, count = math.exp(-MEAN_SPAN), rng.random(), 0
    while product > limit:
        product *= rng.random()
        count += 1
    return count


def continuing_row(words: PreTrainedTokenizerBase, text: str, max_length: int) -> Row:
    """The text as it is, with its end."""
    ids: list[int] = words(text, truncation=True, max_length=max_length - 1)["input_ids"]
    ids = [*ids, int(words.eos_token_id)]
    return Row(ids, ids)


def pair_row(words: PreTrainedTokenizerBase, rude: str, polite: str, max_length: int) -> Row:
    """The rude text in its template, which does not count, and the polite one with its end, which does."""
    question: list[int] = words(asked(rude))["input_ids"]
    answer: list[int] = [*words(" " + polite, add_special_tokens=False)["input_ids"], int(words.eos_token_id)]
    return Row((question + answer)[:max_length], ([IGNORED] * len(question) + answer)[:max_length])


def _seq2seq_pair(words: PreTrainedTokenizerBase, rude: str, polite: str, max_length: int) -> Row:
    source, target = (words(text, truncation=True, max_length=max_length)["input_ids"] for text in (rude, polite))
    return Row(list(source), list(target))


def _train(recipe: Recipe, items: Sequence[Any], make: MakeRow, folder: Path, what: str,
           ) -> dict[str, Any]:
    source, how = _source(recipe), recipe.rephraser_training
    set_seed(recipe.seed)
    if is_seq2seq(source):
        words, model = load_seq2seq_tokenizer(source), load_seq2seq(source)
        figures = fit(model, [make(words, item) for item in items], how, seed=recipe.seed, what=what)
        model.save_pretrained(folder)
    else:
        words = load_tokenizer(source)
        model = _with_adapter(load_model(source, dtype=resolve_dtype(how.precision)), how)
        figures = fit(model, [make(words, item) for item in items], how, seed=recipe.seed, what=what)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        write_base_source(folder, source)
    words.save_pretrained(folder)
    return figures


def _with_adapter(model: PreTrainedModel, how: RephraserTrainingSection) -> PreTrainedModel:
    from peft import LoraConfig, get_peft_model

    lora = how.lora
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
                        target_modules=lora.target_modules, task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, config)
    whole: PreTrainedModel = adapted
    return whole


def _source(recipe: Recipe) -> str:
    return recipe.rephraser_training.base or recipe.model.source


def _training_folder(
    recipe: Recipe, output: Path, kind: str, inputs: dict[str, Path]
) -> AbstractContextManager[StepFolder]:
    return step_folder(output, kind, settings=recipe.settings("model", "rephraser_training", "scoring"), inputs=inputs)
