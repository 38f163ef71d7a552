"""Whole-text rewriting by a generator: a model tuned on pairs (ParaDetox, Logacheva et al. 2022), an instruction
model, or a served endpoint. Several candidates a text; acceptance decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.generation.batching import budget_batches
from llm_detox.generation.generators import EndpointGenerator
from llm_detox.generation.models import positions
from llm_detox.generation.next_token import draw, row_key
from llm_detox.generation.sampling import Guide, sample_continuations
from llm_detox.recipe.evaluation import SamplingSection

PAIR_TEMPLATE = "Rude: {text}\nPolite:"
INSTRUCTION = (
    "Rewrite the comment so that it says the same thing politely, without insults or swearing. "
    "Answer with the rewritten comment only.\n\nComment: {text}"
)
_QUOTED = re.compile(r'["“]([^"“”]+)["”]')

Generate = Callable[[Sequence[str]], list[list[str]]]


class Generator:
    """A method that asks a generator for rewrites.

    Args:
        name: of the method in the audit trail.
        template: the question, with `{text}` in it.
        generate: questions -> several answers each.
    """

    def __init__(self, name: str, template: str, generate: Generate) -> None:
        self.name = name
        self._template = template
        self._generate = generate

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """The first line of each answer, without quotation marks around it; empty and repeated ones are left out."""
        answers = self._generate([asked(text, self._template) for text in texts])
        return [list(dict.fromkeys(line for answer in group if (line := first_line(answer)))) for group in answers]


class Generators:
    """A method that asks several generators: rounds of one model differ more than samples of the last one do.

    Args:
        generators: at least one; the first names the method.
    """

    def __init__(self, generators: Sequence[Generator]) -> None:
        self.name = generators[0].name
        self._generators = list(generators)

    def candidates(self, texts: Sequence[str]) -> list[list[str]]:
        """The candidates of all, each once."""
        groups = zip(*(generator.candidates(texts) for generator in self._generators), strict=True)
        return [list(dict.fromkeys(text for group in several for text in group)) for several in groups]


def asked(text: str, template: str = PAIR_TEMPLATE) -> str:
    """The question that the template makes of a text, on one line each."""
    return template.replace("{text}", " ".join(text.split()))


def first_line(answer: str) -> str:
    """The first line that says something."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    quoted = _QUOTED.fullmatch(line)
    return quoted[1].strip() if quoted else line


def causal_generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, candidates: int,
                    sampling: SamplingSection, seed: int, chat: bool, guide: Guide | None = None) -> Generate:
    """Sampled answers of a causal model, of a chat model through its template; none where a question is too long."""

    def generate(questions: Sequence[str]) -> list[list[str]]:
        prompts = [_as_chat(tokenizer, question) for question in questions] if chat else list(questions)
        fitting = [i for i, prompt in enumerate(prompts) if _fits(prompt)]
        answers: list[list[str]] = [[] for _ in prompts]
        for i, texts in zip(fitting, sample_continuations(
                model, tokenizer, [prompts[i] for i in fitting], k=candidates, sampling=sampling, seed=seed,
                guide=guide), strict=True):
            answers[i] = texts
        return answers

    def _fits(prompt: str) -> bool:
        """A prompt that is cut in front would lose what it asks, or the beginning of the text."""
        longest = positions(model.config)
        return longest is None or len(tokenizer(prompt)["input_ids"]) + sampling.max_new_tokens <= longest

    return generate


def _as_chat(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    return str(tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True))


def seq2seq_generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, candidates: int,
                     sampling: SamplingSection, seed: int) -> Generate:
    """Sampled answers of a seq2seq model, in batches of like length; none where a question is too long."""
    network: Any = model
    longest = positions(model.config)
    new_tokens = min(sampling.max_new_tokens, longest - 1) if longest else sampling.max_new_tokens

    def generate(questions: Sequence[str]) -> list[list[str]]:
        ids = [tokenizer(question)["input_ids"] for question in questions]
        answers: list[list[str]] = [[] for _ in questions]
        fitting = [i for i, row in enumerate(ids) if longest is None or len(row) <= longest]
        sizes = [candidates * (len(ids[i]) + new_tokens) for i in fitting]
        for batch in budget_batches(sizes, sampling.batch_tokens):
            rows = [(fitting[place], number) for place in batch for number in range(candidates)]
            padded = tokenizer.pad({"input_ids": [ids[i] for i, _ in rows]}, return_tensors="pt").to(model.device)
            draws = _KeyedDraws([row_key(seed, questions[i], number) for i, number in rows], sampling)
            with torch.inference_mode():
                out = network.generate(**padded, max_new_tokens=new_tokens, num_beams=1, do_sample=False,
                                       logits_processor=LogitsProcessorList([draws]))
            for (i, _), text in zip(rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True):
                answers[i].append(str(text))
        return answers

    return generate


class _KeyedDraws(LogitsProcessor):
    """Draws each row's next token by noise of its own: an answer does not depend on the others of its batch.

    Args:
        keys: of the rows' noise (`row_key`).
        sampling: nucleus and temperature.
    """

    def __init__(self, keys: Sequence[int], sampling: SamplingSection) -> None:
        self._noise = torch.tensor(keys)
        self._sampling = sampling

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """[rows, vocabulary] logits of the step -> 0 for the token that was drawn, else minus infinity."""
        tokens = draw(scores, self._noise.to(scores.device), input_ids.shape[1], top_p=self._sampling.top_p,
                      temperature=self._sampling.temperature)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)  # type: ignore[return-value]


def endpoint_generate(url: str, model: str, *, candidates: int, sampling: SamplingSection, seed: int) -> Generate:
    """Sampled answers of a served model (see `llm_detox.client`), several requests at a time.

    A single request that fails costs its answer.
    """
    endpoint = EndpointGenerator(url, model=model)

    def generate(questions: Sequence[str]) -> list[list[str]]:
        answers: list[list[str]] = [[] for _ in questions]
        for index, texts in endpoint.continuations(questions, k=candidates, sampling=sampling, seed=seed,
                                                   keys=questions):
            answers[index] = [text for text in texts if text is not None]
        return answers

    return generate
