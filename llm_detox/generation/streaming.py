"""One continuation of a model that is loaded here, token by token as it is made."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from transformers import PreTrainedModel

from llm_detox.client.types import Chunk, Parameters
from llm_detox.data.records import record_id
from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.next_token import draw, row_key
from llm_detox.generation.sampling import end_tokens
from llm_detox.generation.tokens import Vocabulary


class LocalStreamer:
    """A model of this process that answers as a served one does.

    Args:
        source: see `llm_detox.generation.models.load_model`.

    Raises:
        DetoxError: the model cannot be had.
    """

    def __init__(self, source: str) -> None:
        self.tokenizer, self.model = load_tokenizer(source), load_model(source)

    def stream(self, prompt: str, parameters: Parameters) -> Generator[Chunk]:
        """The continuation piece by piece.

        Sampled tokens are drawn as `sampling.sample_continuations` draws the first continuation of the prompt: with
        the same seed two models share their noise. Of the parameters max_new_tokens, decoding_method, temperature,
        top_p and seed count.

        Raises:
            DetoxError: the prompt has no tokens, or leaves no room for a continuation.
        """
        most = parameters.max_new_tokens or 20
        asked = self._encode(prompt, most)
        ends, detokenizer = end_tokens(self.model, self.tokenizer), Vocabulary.of(self.tokenizer).detokenizer()
        for before, token in enumerate(_tokens(self.model, asked, prompt, parameters)):
            if token in ends:
                yield Chunk(detokenizer.flush(), before, "EOS_TOKEN", len(asked))
                return
            piece = detokenizer.push(token)
            if before + 1 == most:
                yield Chunk(piece + detokenizer.flush(), before + 1, "MAX_TOKENS", len(asked))
                return
            if piece:
                yield Chunk(piece, before + 1, "NOT_FINISHED", len(asked))

    def _encode(self, prompt: str, new_tokens: int) -> list[int]:
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]  # type: ignore[assignment]
        if not tokens:
            raise DetoxError("a prompt without tokens cannot be continued", remedy="write something")
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and len(tokens) + new_tokens > limit:
            raise DetoxError(f"the prompt's {len(tokens)} tokens and {new_tokens} new ones are more than the model's "
                             f"{limit}", remedy="shorten the prompt, or ask for fewer tokens")
        return tokens


@torch.inference_mode()
def _tokens(model: PreTrainedModel, asked: list[int], prompt: str, parameters: Parameters) -> Generator[int]:
    """Token after token without end; the caller stops."""
    greedy = parameters.decoding_method != "SAMPLING"
    noise = torch.tensor([row_key(parameters.seed or 0, record_id(prompt), 0)], device=model.device)
    tokens, cache, step = torch.tensor([asked], device=model.device), None, 0
    while True:
        out: Any = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        logits, cache = out.logits[:, -1], out.past_key_values
        if greedy:
            token = logits.argmax(1)
        else:
            token = draw(logits, noise, step, top_p=parameters.top_p or 1.0,
                         temperature=parameters.temperature or 1.0)
        yield int(token)
        tokens, step = token[:, None], step + 1

