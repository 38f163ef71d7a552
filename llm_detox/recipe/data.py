"""The part of a recipe that is about data: comments, prompts, clean passages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from llm_detox.recipe.base import Positive, Section, Share, Table


class Conversations(Table):
    """Requests and their answers."""

    answer_column: str = Field(description="the answers to text_column")
    count: Positive = Field(1000, description="at most so many")


class TextData(Table):
    """Labelled comments: the training text. With answers: requests that the model is to answer so."""

    template: str | None = Field(
        None, description="the text put together from columns in braces, in place of text_column: 'Q: {question.text}'")
    answer_column: str | None = Field(
        None, description="what the model is to answer; trained on the answer alone, prompt and completion")
    chat: bool = Field(False, description="with answers: a conversation in the model's chat template")
    benign: list[Conversations] = Field([], description="harmless conversations mixed in, their answers kept")
    label_column: str | None = Field("is_offensive", description="1 for toxic; without it the scorer decides")
    count: Positive = Field(1000, description="training records, before the budget scales them")
    toxic_share: Share = Field(0.5, description="of the training records")
    min_chars: Positive = Field(30, description="shorter texts are left out")
    max_chars: Positive | Literal["mean"] = Field(
        240, description="longer texts are left out; mean: those longer than the mean of the chosen ones")

    @model_validator(mode="after")
    def _answers_to_chat_with(self) -> TextData:
        if self.answer_column is None and (self.chat or self.benign):
            raise ValueError("chat and benign need an answer_column")
        return self


class PromptData(Section):
    """Prompts that lead a model to toxic continuations, RealToxicityPrompts style."""

    sources: list[Table] = Field(min_length=1, description="all of them together")
    evaluation_count: Positive = Field(60, description="prompts that every arm continues")
    training_count: int = Field(
        120, ge=0, description="other prompts, for sampled preference pairs; 0: all prompts may be evaluated")


class CleanData(Section):
    """Harmless text: for perplexity, and kept apart from all training."""

    sources: list[Table] = Field(min_length=1, description="all of them together")
    count: Positive = Field(80, description="passages for perplexity")
    training_count: int = Field(0, ge=0, description="other passages, mixed into training to keep fluency")
    max_chars: Positive = Field(400, description="longer passages are cut")


class DataSection(Section):
    texts: TextData
    prompts: PromptData
    clean: CleanData
