"""The part of a recipe that is about rewriting toxic text, and about training the models that rewrite."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag, model_validator

from llm_detox.recipe.base import OWN, PRECISION, OwnOrPlugin, Plugin, Positive, Precision, Section, Share, Source
from llm_detox.recipe.scorers import SENTENCE_ENCODER
from llm_detox.recipe.training import LoraSection

Rewriting = Literal["causal", "delete", "tmarco", "marco", "paraphrase", "instruct"]


class CausalRewriteSection(Section):
    """Masks toxic words and fills the gaps with the causal model itself."""

    proposals: Positive = Field(3, description="How many words are proposed for a gap.")
    fill_above: Annotated[float, Field(ge=0)] = Field(
        1.0, description="A gap is filled if leaving it empty makes the text this many times as perplexing.")
    contrast: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="The weight of the anti-expert, which is the model after `anti_prompt`; 0 uses the model alone.")
    anti_prompt: str = Field(
        "The following comment is rude, hateful and full of insults:\n",
        description="What the anti-expert reads before the text.")
    expert: Source | None = Field(
        None, description="An adapter folder for the recipe's model, written by `train-experts`.")
    anti_expert: Source | None = Field(
        None, description="The adapter folder of the anti-expert, also written by `train-experts`.")
    expert_weights: tuple[float, float] = Field((0.5, -0.5), description="The weights of expert and anti-expert.")

    @model_validator(mode="after")
    def _both_or_none(self) -> CausalRewriteSection:
        if (self.expert is None) != (self.anti_expert is None):
            raise ValueError("expert and anti_expert belong together: give both or none")
        return self


class TMaRCoSection(Section):
    """The reference rephraser, with models of the BART family."""

    base: Source = Field("facebook/bart-large", description="The BART model that fills the gaps.")
    experts: list[Source] = Field(
        ["trustyai/gminus", "trustyai/gplus"], min_length=2,
        description="The models that find the words to mask and steer the filling: first the anti-expert, then the "
                    "expert.")
    weights: list[float] = Field([-0.5, 0.5], description="The weights of the experts' logits.")
    threshold: Annotated[float, Field(gt=0)] = Field(
        1.2,
        description="Words are masked if the experts' divergence there is more than this many times the sentence's "
                    "mean.")
    combine_original: bool = Field(True, description="Whether the experts see the original text after the mask.")
    batch_tokens: Positive = Field(4096, description="How many tokens are computed at once.")

    @model_validator(mode="after")
    def _a_weight_each(self) -> TMaRCoSection:
        if len(self.weights) != len(self.experts):
            raise ValueError(f"{len(self.experts)} experts need as many weights, not {len(self.weights)}")
        return self


class MaRCoSection(Section):
    """The method of Hallinan et al. 2023, with models of the BART family."""

    base: Source = Field("facebook/bart-base", description="The BART model that writes.")
    expert: Source = Field("hallisky/bart-base-nontoxic-expert", description="The model of polite text.")
    anti_expert: Source = Field("hallisky/bart-base-toxic-antiexpert", description="The model of toxic text.")
    preset: Literal["magr", "sbf", "dynahate"] = Field(
        "magr", description="The published decoding settings, by the name of their data set.")
    threshold: Annotated[float, Field(gt=0)] = Field(1.2, description="As in `tmarco`, but for whole words.")
    batch_tokens: Positive = Field(4096, description="How many tokens are computed at once.")


class GeneratorSection(Section):
    """A model that writes the rewrite: one tuned on pairs, or an instruction model."""

    model: Source | None = Field(None, description="A model or adapter folder; `null` takes the recipe's model.")
    url: str | None = Field(
        None, description="The address of a served model to use instead; `model` is then its id there.")
    candidates: Positive = Field(4, description="How many rewrites of each text are sampled.")
    max_new_tokens: Positive = Field(64, description="The length of a rewrite, in tokens, at most.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        0.9,
        description="Tokens are sampled from the smallest set whose probabilities add up to this (nucleus sampling).")
    temperature: Annotated[float, Field(gt=0)] = Field(0.7, description="The sampling temperature.")
    batch_tokens: Positive = Field(
        4096, description="How many tokens are computed at once; on a CPU its cores share them.")


class ParaphraseSection(GeneratorSection):
    """A model tuned on pairs, and other models whose rewrites compete with its own."""

    also: list[Source] = Field(
        [], description="Other paraphrasers, such as an earlier round; each one samples `candidates` rewrites, too.")
    fluency_weight: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="How much `fluency_model` takes part in sampling; it needs a causal paraphraser with the same "
                    "vocabulary.")

    @model_validator(mode="after")
    def _others_are_models_too(self) -> ParaphraseSection:
        if self.also and self.url:
            raise ValueError("`also` names models beside `model`, not beside an endpoint: leave out `also` or `url`")
        if self.fluency_weight and self.url:
            raise ValueError("an endpoint samples without it: leave out `fluency_weight` or `url`")
        return self


class DetoxifySection(Section):
    """How toxic text is rewritten, and which rewrites are accepted."""

    methods: list[Annotated[Annotated[Rewriting, Tag(OWN)] | Plugin, OwnOrPlugin]] = Field(
        ["causal", "delete"], min_length=1,
        description="The methods in their order; the next one is used if no candidate of the one before is accepted.")
    toxic_threshold: Share = Field(0.6, description="Texts that score this or more are rewritten.")
    languages: list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]] | None = Field(
        None,
        description="Texts that are surely in none of these languages (`en`, `de`, ...) are left as they are, and "
                    "counted. `null` takes those that `scoring.training` was made for; `[]` lets every text be scored.")
    accept_toxicity: Share = Field(0.3, description="A rewrite must score less than this.")
    accept_similarity: Share = Field(0.6, description="A rewrite must have at least this cosine to the original.")
    accept_fluency: Annotated[float, Field(gt=0)] = Field(
        2.0, description="A rewrite may be at most this many times as perplexing as the original.")
    candidates: Positive = Field(4, description="How many rewrites of each text `causal` offers.")
    tidy: bool = Field(
        False, description="Whether rewrites get capitals, full stops and joined contractions (English only).")
    largest_masked_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.34, description="The largest share of a text's words that may be masked or deleted.")
    causal: CausalRewriteSection = CausalRewriteSection()
    tmarco: TMaRCoSection = TMaRCoSection()
    marco: MaRCoSection = MaRCoSection()
    paraphrase: ParaphraseSection = ParaphraseSection()
    instruct: GeneratorSection = GeneratorSection()
    fluency_model: Source | None = Field(
        None, description="The model that reads the candidates; `null` takes the recipe's model.")
    fluency_contexts: list[str] = Field(
        [""], min_length=1, description="Candidates are read after each of these texts, and the mean counts.")
    batch_tokens: Positive = Field(2048, description="How many tokens are computed at once.")
    precision: Precision = Field("auto", description=f"In what causal models compute: {PRECISION}")
    similarity_model: Source | None = Field(
        SENTENCE_ENCODER, description="The sentence encoder that measures similarity; `null` checks no similarity.")
    otherwise: Literal["drop", "keep"] = Field(
        "drop", description="What happens to a text that no method could rewrite.")
    refusal: str | None = Field(
        None,
        description="For conversations: the answer to every toxic request, instead of a rewrite; `null` keeps every "
                    "answer.")


class RephraserTrainingSection(Section):
    """How experts and paraphrasers are trained: a seq2seq base with all its weights, a causal one with LoRA."""

    base: Source | None = Field(None, description="The model to train; `null` takes the recipe's model.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(1e-4, description="The learning rate at its highest.")
    epochs: Positive = Field(1, description="How often the data is passed over.")
    batch_size: Positive = Field(16, description="How many texts or pairs are in a step.")
    max_length: Annotated[int, Field(ge=2)] = Field(
        128, description="The length of a text, in tokens; longer texts are cut.")
    pair_toxicity: Share = Field(1.0, description="Pairs whose rewrite scores this or more are left out.")
    pair_similarity: Share = Field(0.0, description="Pairs whose two texts have a lower cosine, by "
                                            "`detoxify.similarity_model`, are left out.")
    max_pairs: Positive | None = Field(None, description="How many pairs are used at most; `null` uses all.")
    tidy: bool = Field(
        False, description="Whether the polite texts are tidied as by `detoxify.tidy` before the model learns them.")
    precision: Precision = Field(
        "auto", description=f"In what the model computes: {PRECISION} What is trained is float32.")
    lora: LoraSection = LoraSection()
