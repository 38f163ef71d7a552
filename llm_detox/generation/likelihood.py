"""How likely a causal language model finds texts, and what it expects next: the one reader of log-probabilities.

Whole texts are read in padded batches of like length (`losses`); variants of one text as trees, whose common beginning
is read once (`variant_losses`, `read`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from llm_detox.errors import DetoxError
from llm_detox.generation.batching import budget_batches
from llm_detox.generation.models import load_model, load_tokenizer, positions
from llm_detox.generation.trees import Loss, Tree, TreeBatch, tree_batches

LOGITS_AT_ONCE = 2**25  # float32 values: 128 MiB
# Architectures that change the logits behind the output layer are run whole instead of in pieces.
_TREE_TOLERANCE = 0.02  # bfloat16 rounds by less, another text's tokens in view change more
_LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")


class LikelihoodReader:
    """A causal language model that reads texts in batches.

    A `Loss` is the sum of a text's negative log-likelihoods in nats, and the number of tokens that it is over.

    Args:
        model: any `AutoModelForCausalLM`; for trees one that takes position ids and a four-dimensional attention mask.
        tokenizer: its tokenizer, a fast one.
        context: stands before every text of a tree; it is read, but does not count.
        batch_tokens: tokens of a batch; over those of trees all logits are held in memory.
        max_tokens: longer texts of trees are cut.
        name: for people.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, context: str = "",
                 batch_tokens: int = 4096, max_tokens: int = 512, name: str = "given model") -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.batch_tokens = batch_tokens
        self.max_tokens = min(max_tokens, positions(model.config) or max_tokens)
        self._lately: dict[str, Loss] = {}
        self._start = [_start_token(tokenizer), *self._tokens(context)]

    @classmethod
    def load(cls, source: str, *, batch_tokens: int = 4096) -> LikelihoodReader:
        """The reader of a model source.

        Args:
            source: see `llm_detox.generation.models.load_model`.
            batch_tokens: as for the class.

        Raises:
            DetoxError: the model cannot be had.
        """
        return cls(load_model(source), load_tokenizer(source), batch_tokens=batch_tokens, name=source)

    def losses(self, texts: Sequence[str], *, contexts: Sequence[str] | None = None,
               on_progress: Callable[[int], None] | None = None) -> list[Loss]:
        """The loss of each text, as the tokenizer encodes it and up to the model's length.

        Args:
            texts: those to read.
            contexts: what comes before each text; it is read, but does not count.
            on_progress: called with the number of texts that a batch has done.

        Returns:
            (0.0, 0) for a text without a token that can be predicted. Without a token put in front by the
            tokenizer, a text's first token has nothing to be predicted from and does not count.
        """
        passages = self._passages(texts, contexts or [""] * len(texts))
        results: list[Loss] = [(0.0, 0)] * len(texts)
        for numbers in budget_batches([len(passage.tokens) for passage in passages], self.batch_tokens):
            batch = [passages[number] for number in numbers]
            for passage, loss in zip(batch, self._sums(batch), strict=True):
                results[passage.index] = (loss, len(passage.tokens) - passage.first)
            if on_progress:
                on_progress(len(batch))
        return results

    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]:
        """The losses of groups of texts that begin alike, behind the start token and the reader's context.

        What was read since `forget` is not read again.
        """
        todo = [[text for text in dict.fromkeys(group) if text not in self._lately] for group in variants]
        self.read([texts for texts in todo if texts])
        return [[self._lately[text] for text in group] for group in variants]

    def reads_trees(self) -> bool:
        """Whether the model takes position ids and masks of four dimensions: variants read as one tree and alone agree.
        """
        texts = ["The answer", "The answer is that it rains", "The answer was given long ago"]
        try:
            together, alone = self.variant_losses([texts])[0], []
            for text in texts:
                self.forget()
                alone += self.variant_losses([[text]])[0]
        except (TypeError, ValueError, RuntimeError):  # an unknown argument, or a mask of another shape
            return False
        finally:
            self.forget()
        return all(abs(one - other) <= _TREE_TOLERANCE * other for (one, _), (other, _) in
                   zip(together, alone, strict=True))

    def forget(self) -> None:
        """Read everything anew from now on."""
        self._lately.clear()

    def ids(self, text: str) -> list[int]:
        """Token ids with the start token and the context in front, cut at `max_tokens`."""
        return (self._start + self._tokens(text))[: self.max_tokens]

    @torch.inference_mode()
    def read(self, variants: Sequence[Sequence[str]], places: Sequence[Sequence[int]] | None = None) -> list[Tensor]:
        """Read groups of texts that begin alike, and remember their losses.

        Args:
            variants: the groups.
            places: for each group, indices of tokens of its last text (see `ids`).

        Returns:
            for each group the log-probabilities of the tokens after those places, float32 [places, vocabulary].
        """
        trees = [Tree([self.ids(text) for text in group], given=len(self._start)) for group in variants]
        log_probs = [torch.empty(0)] * len(trees)
        for batch, logits in self._tree_logits(trees):
            nll = batch.nll(logits).cpu()
            for number, row, column in batch.places:
                tree = trees[number]
                self._lately.update(zip(variants[number], tree.losses(nll[row, column:column + tree.width]),
                                        strict=True))
                if places is not None:
                    columns = [column + tree.column(-1, place) for place in places[number]]
                    log_probs[number] = logits[row, columns].float().log_softmax(-1)
        return log_probs

    @torch.inference_mode()
    def next_log_probs(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """Distributions of the token after `prefix[: place + 1]`, for each place of each prefix.

        Returns:
            log-probabilities, float32 of shape [places, vocabulary], on the model's device.
        """
        log_probs = [torch.empty(0)] * len(prefixes)
        for batch, logits in self._tree_logits([Tree([list(prefix)]) for prefix in prefixes]):
            for number, row, column in batch.places:
                columns = [column + place for place in places[number]]
                log_probs[number] = logits[row, columns].float().log_softmax(-1)
        return log_probs

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _tree_logits(self, trees: Sequence[Tree]) -> Iterator[tuple[TreeBatch, Tensor]]:
        """Batches of the trees with their logits [b, s, v]."""
        device, dtype = self.model.device, self.model.dtype
        for batch in tree_batches(trees, self.batch_tokens):
            mask = torch.zeros(batch.visible.shape, dtype=dtype).masked_fill(~batch.visible, torch.finfo(dtype).min)
            yield batch, self.model(input_ids=batch.ids.to(device), attention_mask=mask.unsqueeze(1).to(device),
                                    position_ids=batch.positions.to(device), use_cache=False).logits

    def _passages(self, texts: Sequence[str], contexts: Sequence[str]) -> list[_Passage]:
        limit = positions(self.model.config) or 2**20
        passages = []
        for index, (text, context) in enumerate(zip(texts, contexts, strict=True)):
            encoded = self.tokenizer(context + text, return_offsets_mapping=True) if text else None
            if encoded is None:
                continue
            tokens: list[int] = encoded["input_ids"][:limit]  # type: ignore[index,assignment]
            spans: list[tuple[int, int]] = encoded["offset_mapping"][:limit]  # type: ignore[index,assignment]
            # A token that begins in the context and ends in the text belongs to the text.
            first = next((n for n, (_, end) in enumerate(spans) if end > len(context)), len(tokens))
            first = max(first, 1)
            if first < len(tokens):
                passages.append(_Passage(index, tokens, first))
        return passages

    @torch.inference_mode()
    def _sums(self, batch: Sequence[_Passage]) -> list[float]:
        """Padded on the right, where causal attention does not look; only positions that count get logits."""
        device = self.model.device
        width = max(len(passage.tokens) for passage in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        counts = torch.zeros(len(batch), width, dtype=torch.bool)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, passage in enumerate(batch):
            tokens[row, :len(passage.tokens)] = torch.tensor(passage.tokens)
            counts[row, passage.first:len(passage.tokens)] = True
            mask[row, :len(passage.tokens)] = 1
        tokens, counts, mask = tokens.to(device), counts.to(device), mask.to(device)
        equal = all(len(passage.tokens) == width for passage in batch)
        nll = self._nll(tokens, counts, None if equal else mask)
        owner = torch.nonzero(counts)[:, 0]
        sums = torch.zeros(len(batch), dtype=torch.float64, device=device).index_add_(0, owner, nll.double())
        return [float(value) for value in sums.tolist()]

    def _nll(self, tokens: Tensor, counts: Tensor, mask: Tensor | None) -> Tensor:
        """[number of counting positions] negative log-likelihoods, in row-major order."""
        before, targets = counts[:, 1:], tokens[counts]
        head = self.model.get_output_embeddings()
        if head is None or changes_logits(self.model.config):
            logits = self.model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1][before]
            return _cross_entropy(logits, targets)
        body = self.model.base_model
        hidden = body(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1][before]
        rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
        return torch.cat([_cross_entropy(head(part), target)
                          for part, target in zip(hidden.split(rows), targets.split(rows), strict=True)])


@dataclass(frozen=True)
class _Passage:
    index: int
    tokens: list[int]
    first: int  # the first token that counts


class ContextAveragedReader:
    """Reads texts behind each of several contexts: a model's surprise at the beginning of a text is mostly noise,
    and another one behind each context.

    Args:
        readers: of one tokenizer, at least one.
    """

    def __init__(self, readers: Sequence[LikelihoodReader]) -> None:
        self._readers = list(readers)

    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]:
        """As of `LikelihoodReader`, the mean over the contexts."""
        several = [reader.variant_losses(variants) for reader in self._readers]
        return [[(sum(nll for nll, _ in losses) / len(losses), losses[0][1]) for losses in zip(*groups, strict=True)]
                for groups in zip(*several, strict=True)]

    def forget(self) -> None:
        """Read everything anew from now on."""
        for reader in self._readers:
            reader.forget()


def perplexity_of(losses: Sequence[Loss]) -> float:
    """exp(mean negative log-likelihood a token) over all the texts.

    Raises:
        DetoxError: there is no token.
    """
    total, tokens = sum(loss for loss, _ in losses), sum(count for _, count in losses)
    if not tokens:
        raise DetoxError("there is no text to measure the perplexity of", remedy="give texts of two words or more")
    return math.exp(total / tokens)


def changes_logits(config: PretrainedConfig) -> bool:
    """Whether models of this configuration do more to their logits than the output layer does."""
    return any(getattr(part, name, None) for part in (config, config.get_text_config()) for name in _LOGIT_CHANGES)


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text's first token: where texts were parted in pretraining, if the vocabulary tells.

    The beginning token of a chat model begins a turn, behind which the name of a role is expected and no text.
    """
    separator = tokenizer.get_vocab().get("<|endoftext|>")
    return int(next((token for token in (separator, tokenizer.bos_token_id, tokenizer.eos_token_id)
                     if token is not None), 0))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
