"""The part of a recipe that is about rewriting toxic text, and about training the models that rewrite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from llm_detox.recipe.base import OWN, OwnOrPlugin, Plugin, Positive, Section, Share, Source
from llm_detox.recipe.scorers import SENTENCE_ENCODER
from llm_detox.recipe.training import LoraSection

Rewriting = Literal["causal", "delete", "tmarco", "marco", "paraphrase", "instruct"]


class CausalRewriteSection(Section):
    """Masking and filling with the causal model itself."""

    proposals: Positive = Field(3, description="words proposed for a gap")
    fill_above: Annotated[float, Field(ge=0)] = Field(
        1.0, description="gaps are filled where leaving them empty makes the text so many times as perplexing")
    contrast: Annotated[float, Field(ge=0)] = Field(
        0.0, description="weight of the anti-expert: the model after `anti_prompt`; 0 reads the base alone")
    anti_prompt: str = Field(
        "The following comment is rude, hateful and full of insults:\n", description="what the anti-expert reads first")
    expert: Source | None = Field(None, description="adapter folder on the model, as `train-experts` writes it")
    anti_expert: Source | None = Field(None, description="adapter folder, as `expert`")
    expert_weights: tuple[float, float] = Field((0.5, -0.5), description="of expert and anti-expert")

    @model_validator(mode="after")
    def _both_or_none(self) -> CausalRewriteSection:
        if (self.expert is None) != (self.anti_expert is None):
            raise ValueError("expert and anti_expert belong together: give both or none")
        return self


class TMaRCoSection(Section):
    """The reference rephraser with models of the BART family."""

    base: Source = "facebook/bart-large"
    experts: list[Source] = Field(["trustyai/gminus", "trustyai/gplus"], min_length=2, description="anti, expert")
    weights: list[float] = Field([-0.5, 0.5], description="of the experts' logits")
    threshold: Annotated[float, Field(gt=0)] = Field(
        1.2, description="words are masked whose divergence is over so many times the sentence's mean")
    combine_original: bool = Field(True, description="the experts see the original behind the mask")
    batch_tokens: Positive = Field(4096, description="tokens in flight a batch")

    @model_validator(mode="after")
    def _a_weight_each(self) -> TMaRCoSection:
        if len(self.weights) != len(self.experts):
            raise ValueError(f"{len(self.experts)} experts need as many weights, not {len(self.weights)}")
        return self


class MaRCoSection(Section):
    """Hallinan et al. 2023, with models of the BART family."""

    base: Source = "facebook/bart-base"
    expert: Source = "hallisky/bart-base-nontoxic-expert"
    anti_expert: Source = "hallisky/bart-base-toxic-antiexpert"
    preset: Literal["magr", "sbf", "dynahate"] = Field("magr", description="decoding, as published for these data")
    threshold: Annotated[float, Field(gt=0)] = Field(1.2, description="as of tmarco, by words")
    batch_tokens: Positive = Field(4096, description="tokens in flight a batch")


class GeneratorSection(Section):
    """A model that writes the rewrite: tuned on pairs, or instructed."""

    model: Source | None = Field(None, description="model or adapter folder; None takes the recipe's model")
    url: str | None = Field(None, description="a served endpoint instead; `model` is then its id there")
    candidates: Positive = Field(4, description="rewrites of each text")
    max_new_tokens: Positive = Field(64, description="of a rewrite")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(0.9, description="nucleus that tokens are drawn from")
    temperature: Annotated[float, Field(gt=0)] = Field(0.7, description="of the drawing")
    batch_tokens: Positive = Field(4096, description="tokens in flight; on a CPU its cores share them")


class ParaphraseSection(GeneratorSection):
    """A model that was tuned on pairs, and others whose rewrites compete with its own."""

    also: list[Source] = Field([], description="other paraphrasers, such as an earlier round; `candidates` of each")
    fluency_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="of what `fluency_model` finds likely, while a causal paraphraser of its vocabulary draws")

    @model_validator(mode="after")
    def _others_are_models_too(self) -> ParaphraseSection:
        if self.also and self.url:
            raise ValueError("`also` names models beside `model`, not beside an endpoint: leave out `also` or `url`")
        if self.fluency_weight and self.url:
            raise ValueError("an endpoint draws alone: leave out `fluency_weight` or `url`")
        return self


class DetoxifySection(Section):
    """Rewriting toxic text, and what makes a rewrite acceptable."""

    methods: list[Annotated[Annotated[Rewriting, Tag(OWN)] | Plugin, OwnOrPlugin]] = Field(
        ["causal", "delete"], min_length=1, description="a chain: the next one where no candidate is accepted")
    toxic_threshold: Share = Field(0.6, description="records at or over it are rewritten")
    accept_toxicity: Share = Field(0.3, description="a rewrite must score below it")
    accept_similarity: Share = Field(0.6, description="cosine to the original, at least")
    accept_fluency: Annotated[float, Field(gt=0)] = Field(
        2.0, description="perplexity relative to the original's, at most")
    candidates: Positive = Field(4, description="rewrites of each text, of causal")
    tidy: bool = Field(False, description="rewrites get capitals, stops and joined contractions (English)")
    largest_masked_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.34, description="of a text's words that may be masked or deleted")
    causal: CausalRewriteSection = CausalRewriteSection()
    tmarco: TMaRCoSection = TMaRCoSection()
    marco: MaRCoSection = MaRCoSection()
    paraphrase: ParaphraseSection = ParaphraseSection()
    instruct: GeneratorSection = GeneratorSection()
    fluency_model: Source | None = Field(None, description="reads the candidates; None takes the recipe's model")
    fluency_contexts: list[str] = Field(
        [""], min_length=1, description="candidates are read behind each of them; the mean counts")
    batch_tokens: Positive = Field(2048, description="tokens in flight a batch")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="of causal models that draw and read; auto: bf16 on GPUs; it pays on CPUs with AMX, too")
    similarity_model: Source | None = Field(
        SENTENCE_ENCODER, description="sentence encoder; None: no check")
    otherwise: Literal["drop", "keep"] = Field("drop", description="with text that no method could rewrite")
    refusal: str | None = Field(
        None, description="of conversations: the answer to every toxic request, in place of rewriting anything")


class RephraserTrainingSection(Section):
    """Experts and paraphrasers: full fine-tuning of a seq2seq base, LoRA on a causal one."""

    base: Source | None = Field(None, description="None takes the recipe's model")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="at its highest")
    epochs: Positive = Field(1, description="passes over the data")
    batch_size: Positive = Field(16, description="texts or pairs a step")
    max_length: Positive = Field(128, description="tokens of a text; longer ones are cut")
    pair_toxicity: Share = Field(1.0, description="rewrites that the training scorer finds at or over it teach nothing")
    pair_similarity: Share = Field(0.0, description="pairs with a lower cosine (MiniLM) teach nothing")
    max_pairs: Positive | None = Field(None, description="at most so many pairs")
    tidy: bool = Field(False, description="the polite texts are tidied as by detoxify.tidy before they are learnt")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="of a causal base, as detoxify.precision; its adapters are float32")
    lora: LoraSection = LoraSection()
