"""What goes into an experiment: the model, its data (comments, prompts, clean passages), and how much of them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm_detox.recipe.base import Positive, Section, Share, Source, Table

TEMPLATE_FIELD = re.compile(r"\{([\w.]+)\}")


class ModelSection(Section):
    """The model to detoxify."""

    source: Source = Field(
        description="The model to detoxify: a hub id (`owner/name` or `owner/name@revision`), a path, `s3://` or "
                    "`package://`.")


class Translation(Section):
    """A value of the published source that cannot be used as it is. Training prints it."""

    source: str = Field(description="What the source says.")
    here: str = Field(description="What this recipe says instead.")
    reason: str = Field(description="Why it cannot be the same.")


class BudgetSection(Section):
    """A quick measurement of the machine decides the sizes: slower machines get fewer records."""

    scale: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto", description="The share of texts, prompts and clean passages that is used; `auto` measures the machine.")
    reference_gflops: Annotated[float, Field(gt=0)] = Field(
        100, description="The float32 rate, in GFLOP/s, of a machine that runs the full sizes.")
    smallest_scale: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="The least share that `auto` chooses.")


class Conversations(Table):
    """Requests and their answers."""

    answer_column: str = Field(description="The column with the answers to `text_column`.")
    count: Positive = Field(1000, description="How many conversations are used at most.")


class TextData(Table):
    """The training text: labelled comments, or requests with the answers that the model is to learn."""

    template: str | None = Field(
        None,
        description="How the text is put together from columns in braces, instead of `text_column`: `'Q: "
                    "{question.text}'`.")
    answer_column: str | None = Field(
        None,
        description="The column with the answer that the model learns; the text is then the prompt and is not learned.")
    chat: bool = Field(False, description="Whether text and answer become a conversation in the model's chat template.")
    benign: list[Conversations] = Field([], description="Harmless conversations to mix in; their answers are kept.")
    label_column: str | None = Field(
        "is_offensive",
        description="The column that is 1 for toxic texts and 0 for others; with `null` the scorer decides. Texts "
                    "without a label or with both are left out and counted; more than 5 % of them are an error.")
    count: Positive = Field(
        1000, description="How many training records are used at most, before `budget` scales the number.")
    toxic_share: Share = Field(0.5, description="The share of toxic texts among the training records.")
    held_out_count: int = Field(
        0, ge=0,
        description="How many harmless texts are kept from all training, at most, before `budget` scales the number. "
                    "Each arm's perplexity on them says what it has learnt of this kind of text. They need labels.")
    min_chars: Positive = Field(30, description="Shorter texts are left out.")
    max_chars: Positive | Literal["mean"] = Field(
        240,
        description="Longer texts are left out; `mean` leaves out those that are longer than the mean of the chosen "
                    "ones.")

    @model_validator(mode="after")
    def _lengths_in_order(self) -> TextData:
        if self.max_chars != "mean" and self.min_chars > self.max_chars:
            raise ValueError(f"min_chars is {self.min_chars}, more than max_chars, {self.max_chars}")
        return self

    @model_validator(mode="after")
    def _answers_to_chat_with(self) -> TextData:
        if self.answer_column is None and (self.chat or self.benign):
            raise ValueError("chat and benign need an answer_column")
        return self

    @model_validator(mode="after")
    def _harmless_texts_to_hold_out(self) -> TextData:
        if self.held_out_count and (self.label_column is None or self.answer_column is not None):
            raise ValueError("held_out_count needs a label_column and no answer_column: harmless texts are held out")
        return self


class PromptTable(Table):
    """Prompts, or comments that become prompts."""

    template: str | None = Field(
        None,
        description="What stands around the prompt, with its column in braces, where the training text has it, too: "
                    "`'Question: {text}'`.")
    @model_validator(mode="after")
    def _template_holds_the_text(self) -> PromptTable:
        if self.template is not None and TEMPLATE_FIELD.findall(self.template) != [self.text_column]:
            raise ValueError(f"the template must hold {{{self.text_column}}}, the text_column, once and nothing else")
        return self


class PromptData(Section):
    """Prompts that lead a model to toxic continuations, in the style of RealToxicityPrompts."""

    sources: list[PromptTable] = Field(
        min_length=1, description="Files or folders with prompts; all of them are used together.")
    evaluation_count: Positive = Field(60, description="How many prompts every arm continues, at most.")
    training_count: int = Field(
        120, ge=0,
        description="How many other prompts preference pairs are sampled from, at most; with 0 all prompts may be used"
                    " for evaluation.")


class CleanData(Section):
    """Harmless text: passages that perplexity is measured on, and others that training may use."""

    sources: list[Table] = Field(
        min_length=1, description="Files or folders with harmless texts; all of them are used together.")
    count: Positive = Field(150, description="How many passages perplexity is measured on, at most.")
    training_count: int = Field(
        0, ge=0, description="How many other passages are mixed into training, to keep the model fluent.")
    max_chars: Positive = Field(400, description="Longer passages are cut.")


class DataSection(Section):
    """Where texts, prompts and clean passages come from."""

    texts: TextData
    prompts: PromptData
    clean: CleanData
    skip_bad_records: int = Field(
        0, ge=0,
        description="How many bad records of texts, prompts and clean passages may be left out: lines that cannot be "
                    "read, rows of another length, missing columns, labels that are neither. They are counted, and "
                    "listed in `skipped.jsonl`. With 0 the first one is an error.")
