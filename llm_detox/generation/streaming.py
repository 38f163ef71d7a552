"""One continuation of a model that is loaded here, token by token as it is made."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.client.types import Chunk, Parameters
from llm_detox.data.records import record_id
from llm_detox.errors import DetoxError
from llm_detox.generation.models import load_model, load_tokenizer
from llm_detox.generation.sampling import draw, row_key

_CONTEXT_TOKENS = 4  # decoded together with the continuation, so that its leading space survives
_CUT = "\ufffd"  # a character of which only some bytes have come


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
        ends = _end_tokens(self.model, self.tokenizer)
        text, shown = _Text(self.tokenizer, asked), ""
        for before, token in enumerate(_tokens(self.model, asked, prompt, parameters)):
            if token in ends:
                yield Chunk("", before, "EOS_TOKEN", len(asked))
                return
            whole = text.add(token)
            last = before + 1 == most
            piece = whole[len(shown):]
            if piece or last:
                yield Chunk(piece, before + 1, "MAX_TOKENS" if last else "NOT_FINISHED", len(asked))
            shown = whole
            if last:
                return

    def _encode(self, prompt: str, new_tokens: int) -> list[int]:
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]  # type: ignore[assignment]
        if not tokens:
            raise DetoxError("a prompt without tokens cannot be continued", remedy="write something")
        limit = getattr(self.model.config, "max_position_embeddings", None)
        if limit and len(tokens) + new_tokens > limit:
            raise DetoxError(f"the prompt's {len(tokens)} tokens and {new_tokens} new ones are more than the model's "
                             f"{limit}", remedy="shorten the prompt, or ask for fewer tokens")
        return tokens


class _Text:
    """The text of tokens that come one by one; it only grows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: list[int]) -> None:
        self._tokenizer, self._tokens = tokenizer, prompt[-_CONTEXT_TOKENS:]
        self._before, self._whole = self._decode(), ""

    def add(self, token: int) -> str:
        """The text with this token, as far as its characters are whole."""
        self._tokens.append(token)
        text = self._decode()
        if not text.endswith(_CUT) and text.startswith(self._before + self._whole):
            self._whole = text[len(self._before):]
        return self._whole

    def _decode(self) -> str:
        found: str = self._tokenizer.decode(  # type: ignore[assignment]
            self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return found


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


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    config: Any = model.generation_config
    found = config.eos_token_id if config is not None else None
    return {token for token in [*(found if isinstance(found, list) else [found]), tokenizer.eos_token_id]
            if isinstance(token, int)}
