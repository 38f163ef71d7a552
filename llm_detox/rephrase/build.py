"""Builds the scorers, models and methods that a recipe names; models are loaded when a toxic text first needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.data.records import Record
from llm_detox.errors import DetoxError
from llm_detox.generation.likelihood import ContextAveragedReader, LikelihoodReader
from llm_detox.generation.models import load_model, load_tokenizer, resolve_dtype
from llm_detox.generation.sampling import Guide
from llm_detox.generation.trees import Loss
from llm_detox.plugins import PREFIX, load_plugin
from llm_detox.recipe import Recipe
from llm_detox.recipe.evaluation import SamplingSection
from llm_detox.recipe.rephrase import GeneratorSection, ParaphraseSection
from llm_detox.rephrase.acceptance import Acceptance, Bounds, Method, Scorer
from llm_detox.rephrase.causal import CausalRewriter, Masking, NextTokenModel, Prompted
from llm_detox.rephrase.chain import Chain, Refusals
from llm_detox.rephrase.paraphrase import (
    INSTRUCTION,
    PAIR_TEMPLATE,
    Generator,
    Generators,
    causal_generate,
    endpoint_generate,
    seq2seq_generate,
)
from llm_detox.rephrase.seq2seq import is_seq2seq, load_seq2seq, load_seq2seq_tokenizer
from llm_detox.rephrase.words import Delete, as_printed
from llm_detox.scoring.base import ToxicityScorer
from llm_detox.scoring.languages import LanguageCheck


class MethodFactory:
    """Builds what a recipe names; models are loaded when the first toxic text needs them."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._settings = recipe.detoxify

    @cached_property
    def chain(self) -> Chain:
        settings = self._settings
        return Chain(self.scorer, settings.toxic_threshold, [self.link(name) for name in settings.methods],
                     self.acceptance, keep_refused=settings.otherwise == "keep", languages=self.languages)

    @cached_property
    def languages(self) -> LanguageCheck:
        """Tells texts that the scorer was not made for, unless the recipe names other languages."""
        if self._settings.languages is not None:
            return LanguageCheck(self._settings.languages)
        return LanguageCheck(self.scorer.languages if isinstance(self.scorer, ToxicityScorer) else ())

    @cached_property
    def acceptance(self) -> Acceptance:
        """Judges candidates by the recipe's bounds."""
        settings = self._settings
        bounds = Bounds(settings.accept_toxicity, settings.accept_similarity, settings.accept_fluency)
        return Acceptance(self.scorer, _LateSimilarity(self), _LateFluency(self), bounds)

    def link(self, name: str) -> Method:
        """A method of the recipe, built when it is first asked, whose rewrites are tidied if the recipe says so."""
        method = _Late(name, self)
        return Tidied(method) if self._settings.tidy else method

    def for_records(self, records: Sequence[Record]) -> Chain | Refusals:
        """What works on the records: the chain, or on requests with answers the recipe's refusal."""
        return self._refusals if "messages" in records[0] or "completion" in records[0] else self.chain

    @cached_property
    def _refusals(self) -> Refusals:
        return Refusals(self.scorer, self._settings.toxic_threshold, self._settings.refusal)

    @cached_property
    def scorer(self) -> Scorer:
        from llm_detox.scoring.load import load_scorer

        return load_scorer(self._recipe.scoring.training)

    @cached_property
    def engine(self) -> LikelihoodReader:
        """The recipe's model: proposes words and measures fluency. The evaluation's scorer is not used here."""
        source = self._settings.fluency_model or self._recipe.model.source
        return LikelihoodReader(self._causal_model(source), load_tokenizer(source),
                            batch_tokens=self._settings.batch_tokens)

    @cached_property
    def _dtype(self) -> torch.dtype:
        return resolve_dtype(self._settings.precision)

    def _causal_model(self, source: str) -> PreTrainedModel:
        return load_model(source, dtype=self._dtype)

    @cached_property
    def fluency(self) -> ContextAveragedReader:
        """The engine, reading after each context of the recipe."""
        alone = self.engine
        return ContextAveragedReader([
            LikelihoodReader(alone.model, alone.tokenizer, context=context, batch_tokens=alone.batch_tokens)
            if context else alone for context in self._settings.fluency_contexts])

    def start_afresh(self) -> None:
        """Forget what earlier chunks left behind, so that a chunk's outcome is its own."""
        if "engine" in self.__dict__:
            self.engine.forget()
        if "fluency" in self.__dict__:
            self.fluency.forget()

    @cached_property
    def similarity(self) -> Any:
        from llm_detox.scoring.similarity import SentenceSimilarity

        source = self._settings.similarity_model
        return SentenceSimilarity(source) if source else None

    def method(self, name: str) -> Method:
        """Build one method of the recipe."""
        if name.startswith(PREFIX):
            plugin: Method = load_plugin("llm_detox.rephrasers", name)(self._recipe, self.scorer)
            return plugin
        build: dict[str, Callable[[], Method]] = {
            "delete": self._delete, "causal": self._causal, "tmarco": self._tmarco, "marco": self._marco,
            "paraphrase": self._paraphrase, "instruct": self._instruct}
        return build[name]()

    def _delete(self) -> Method:
        return Delete(self.scorer, below=self._settings.accept_toxicity,
                      largest_share=self._settings.largest_masked_share)

    def _causal(self) -> Method:
        causal = self._settings.causal
        experts: list[tuple[float, NextTokenModel]] = []
        if causal.expert and causal.anti_expert:
            from llm_detox.rephrase.causal import adapter_readers

            readers = adapter_readers(self.engine, {"expert": causal.expert, "anti_expert": causal.anti_expert})
            experts = list(zip(causal.expert_weights, readers.values(), strict=True))
        if causal.contrast:
            experts.append((-causal.contrast, Prompted(self.engine, causal.anti_prompt)))
        return CausalRewriter(
            self.engine, self.scorer, Masking(self._settings.accept_toxicity, self._settings.largest_masked_share),
            experts=experts, proposals=causal.proposals, candidates=self._settings.candidates,
            fill_above=causal.fill_above)

    def _tmarco(self) -> Method:
        from llm_detox.rephrase.tmarco import TMaRCo

        section = self._settings.tmarco
        model = TMaRCo(section.base, section.experts, section.weights, batch_tokens=section.batch_tokens)
        return Rewriter("tmarco", lambda texts: model.rephrase(texts, section.threshold, section.combine_original),
                        model.fits)

    def _marco(self) -> Method:
        from llm_detox.rephrase.marco import MaRCo

        section = self._settings.marco
        model = MaRCo(section.base, section.expert, section.anti_expert, decoding=section.preset,
                      batch_tokens=section.batch_tokens)
        return Rewriter("marco", lambda texts: model.rephrase(texts, section.threshold), model.fits)

    def _paraphrase(self) -> Method:
        section = self._settings.paraphrase
        return Generators([
            self._generator("paraphrase", section.model_copy(update={"model": source}), PAIR_TEMPLATE, chat=False)
            for source in (section.model, *section.also)])

    def _instruct(self) -> Method:
        return self._generator("instruct", self._settings.instruct, INSTRUCTION, chat=True)

    def _generator(self, name: str, section: GeneratorSection, template: str, *, chat: bool) -> Generator:
        sampling = SamplingSection(top_p=section.top_p, temperature=section.temperature,
                                   max_new_tokens=section.max_new_tokens, batch_tokens=section.batch_tokens)
        if section.url:
            return Generator(name, template, endpoint_generate(
                section.url, section.model or "", candidates=section.candidates, sampling=sampling,
                seed=self._recipe.seed))
        source = section.model or self._recipe.model.source
        weight = section.fluency_weight if isinstance(section, ParaphraseSection) else 0.0
        if is_seq2seq(source):
            if weight:
                raise DetoxError("a seq2seq paraphraser samples without it", place="detoxify.paraphrase.fluency_weight",
                                 remedy="leave it out, or name a causal paraphraser")
            generate = seq2seq_generate(
                load_seq2seq(source), load_seq2seq_tokenizer(source), candidates=section.candidates, sampling=sampling,
                seed=self._recipe.seed)
            return Generator(name, "{text}" if name == "paraphrase" else template, generate)
        words = load_tokenizer(source)
        return Generator(name, template, causal_generate(
            self._causal_model(source), words, candidates=section.candidates, sampling=sampling, seed=self._recipe.seed,
            chat=chat, guide=self._guide(words, weight) if weight else None))

    def _guide(self, words: PreTrainedTokenizerBase, weight: float) -> Guide:
        """The fluency model, reading along with a paraphraser."""
        if words.get_vocab() != self.engine.tokenizer.get_vocab():
            raise DetoxError("the fluency model has another vocabulary than the paraphraser",
                             place="detoxify.paraphrase.fluency_weight",
                             remedy="set it to 0, or name the paraphraser's base in detoxify.fluency_model")
        return Guide(self.engine.model, self.engine.ids(""), weight)


class Rewriter:
    """A method that gives one rewrite of a text, if the text fits its models."""

    def __init__(self, name: str, rephrase: Callable[[Sequence[str]], list[str]], fits: Callable[[str], bool]) -> None:
        self.name = name
        self._rephrase = rephrase
        self._fits = fits

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """The rewrite, without spaces around it; none where nothing changed, or the text is too long."""
        fitting = [text for text in dict.fromkeys(texts) if self._fits(text)]
        rewrites = dict(zip(fitting, (new.strip() for new in self._rephrase(fitting)), strict=True))
        return [[rewrites[text]] if text in rewrites and rewrites[text] != text.strip() else [] for text in texts]


class Tidied:
    """A method whose candidates are written down tidily."""

    def __init__(self, method: Method) -> None:
        self.name = method.name
        self._method = method

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        return [[as_printed(text) for text in group] for group in self._method.candidates(texts)]


class _Late:
    """A method that is built when it is first asked."""

    def __init__(self, name: str, workshop: MethodFactory) -> None:
        self.name = name
        self._workshop = workshop

    @cached_property
    def _method(self) -> Method:
        return self._workshop.method(self.name)

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        return self._method.candidates(texts)


class _LateSimilarity:
    def __init__(self, workshop: MethodFactory) -> None:
        self._workshop = workshop

    def cosine(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        judge = self._workshop.similarity
        return list(judge.cosine(a, b)) if judge else [1.0] * len(a)


class _LateFluency:
    def __init__(self, workshop: MethodFactory) -> None:
        self._workshop = workshop

    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]:
        return self._workshop.fluency.variant_losses(variants) if variants else []
