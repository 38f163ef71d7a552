"""A causal language model read in batches without padding: whole-text likelihoods and next-word distributions.

Variants of one text form a tree: their common beginning is read once, each ending sees only itself and that
beginning. Trees of many texts are packed into rows, each blind to the others, by an attention mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loss = tuple[float, int]


def budget_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `budget` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    while order:
        size = max(1, budget // max(1, lengths[order[-1]]))
        yield order[-size:]
        order = order[:-size]


class LikelihoodReader:
    """Batched reading with one causal model.

    Args:
        model: any `AutoModelForCausalLM` that takes position ids and a four-dimensional attention mask.
        tokenizer: its tokenizer.
        context: stands before every text; it is read, but does not count.
        batch_tokens: tokens in one batch, over which the logits are held in memory.
        max_tokens: longer texts are cut.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, context: str = "",
                 batch_tokens: int = 2048, max_tokens: int = 512) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.max_tokens = max_tokens
        self.tokens_read = 0
        self._lately: dict[str, Loss] = {}
        self._start = [_start_token(tokenizer), *self._tokens(context)]

    def ids(self, text: str) -> list[int]:
        """Token ids with the start token and the context in front, cut at `max_tokens`."""
        return (self._start + self._tokens(text))[: self.max_tokens]

    def _tokens(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def losses(self, texts: Sequence[str]) -> list[Loss]:
        """(sum of negative log-likelihoods in nats, predicted tokens) of each text."""
        return [row[0] for row in self.variant_losses([[text] for text in texts])]

    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]:
        """Like `losses`, for groups of texts that begin alike; what was read since `forget` is not read again."""
        todo = [[text for text in dict.fromkeys(group) if text not in self._lately] for group in variants]
        self.read([texts for texts in todo if texts])
        return [[self._lately[text] for text in group] for group in variants]

    def forget(self) -> None:
        """Read everything anew from now on."""
        self._lately.clear()

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
        found = [torch.empty(0)] * len(trees)
        for rows in self._batches([tree.width for tree in trees]):
            width = max(sum(trees[i].width for i in row) for row in rows)
            logits, nll = self._logits([[trees[i] for i in row] for row in rows], width)
            for k, row in enumerate(rows):
                offset = 0
                for i in row:
                    end = offset + trees[i].width
                    self._lately.update(zip(variants[i], trees[i].losses(nll[k, offset:end]), strict=True))
                    if places is not None:
                        at = [offset + trees[i].column(-1, place) for place in places[i]]
                        found[i] = logits[k, at].float().log_softmax(-1)
                    offset = end
        return found

    def next_log_probs(self, prefixes: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[Tensor]:
        """Distributions of the token after `prefix[: place + 1]`, for each place of each prefix.

        Returns:
            log-probabilities, float32 of shape [places, vocabulary], on the model's device.
        """
        with torch.inference_mode():
            trees = [Tree([list(prefix)]) for prefix in prefixes]
            found = [torch.empty(0)] * len(trees)
            for rows in self._batches([tree.width for tree in trees]):
                width = max(sum(trees[i].width for i in row) for row in rows)
                logits = self._forward([[trees[i] for i in row] for row in rows], width)[0]
                for k, row in enumerate(rows):
                    offset = 0
                    for i in row:
                        found[i] = logits[k, [offset + place for place in places[i]]].float().log_softmax(-1)
                        offset += trees[i].width
        return found

    def _batches(self, widths: Sequence[int]) -> Iterator[list[list[int]]]:
        """Rows of trees, each row filled up to the widest tree, in batches of the token budget."""
        if not widths:
            return
        capacity = max(widths)
        rows: list[list[int]] = []
        room: list[int] = []
        for i in sorted(range(len(widths)), key=lambda i: (-widths[i], i)):
            fits = next((k for k, free in enumerate(room) if free >= widths[i]), None)
            if fits is None:
                rows.append([i])
                room.append(capacity - widths[i])
            else:
                rows[fits].append(i)
                room[fits] -= widths[i]
        size = max(1, self.batch_tokens // max(1, capacity))
        for first in range(0, len(rows), size):
            yield rows[first: first + size]

    def _logits(self, rows: Sequence[Sequence[Tree]], width: int) -> tuple[Tensor, Tensor]:
        logits, ids, parents = self._forward(rows, width)
        return logits, _nll(logits, parents, ids).cpu()

    def _forward(self, rows: Sequence[Sequence[Tree]], width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [rows, width, vocabulary], token ids and parents [rows, width]."""
        self.tokens_read += width * len(rows)
        where = self.model.device
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        positions, parents = ids.clone(), ids.clone()
        visible = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
        for k, row in enumerate(rows):
            offset = 0
            for tree in row:
                place = slice(offset, offset + tree.width)
                ids[k, place] = torch.tensor(tree.tokens)
                positions[k, place] = torch.tensor(tree.positions)
                parents[k, place] = torch.tensor(tree.parents) + offset
                visible[k, place, place] = tree.visible()
                offset += tree.width
        floor = torch.finfo(self.model.dtype).min
        mask = torch.zeros(len(rows), 1, width, width, dtype=self.model.dtype).masked_fill(~visible.unsqueeze(1), floor)
        ids = ids.to(where)
        logits = self.model(input_ids=ids, attention_mask=mask.to(where), position_ids=positions.to(where),
                            use_cache=False).logits
        return logits, ids, parents.to(where)


class ContextAveragedReader:
    """Reads texts behind each of several contexts: a model's surprise at the beginning of a text is mostly noise,
    and another one behind each context.

    Args:
        engines: of one tokenizer, at least one.
    """

    def __init__(self, engines: Sequence[LikelihoodReader]) -> None:
        self._engines = list(engines)

    def variant_losses(self, variants: Sequence[Sequence[str]]) -> list[list[Loss]]:
        """As of `LikelihoodReader`, the mean over the contexts."""
        several = [engine.variant_losses(variants) for engine in self._engines]
        return [[(sum(nll for nll, _ in losses) / len(losses), losses[0][1]) for losses in zip(*groups, strict=True)]
                for groups in zip(*several, strict=True)]

    def forget(self) -> None:
        """Read everything anew from now on."""
        for engine in self._engines:
            engine.forget()


def _start_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text's first token: where texts were parted in pretraining, if the vocabulary tells.

    The beginning token of a chat model begins a turn, behind which the name of a role is expected and no text.
    """
    separator = tokenizer.get_vocab().get("<|endoftext|>")
    return int(next((token for token in (separator, tokenizer.bos_token_id, tokenizer.eos_token_id)
                     if token is not None), 0))


def _nll(logits: Tensor, parents: Tensor, ids: Tensor) -> Tensor:
    """Negative log-likelihood of each token given its parent's logits; [b, s]."""
    rows = []
    for row_logits, row_parents, row_ids in zip(logits, parents, ids, strict=True):
        normalisers = row_logits.float().logsumexp(-1)
        rows.append(normalisers[row_parents] - row_logits[row_parents, row_ids].float())
    return torch.stack(rows)


class Tree:
    """Variants of one text: the tokens of their common beginning, then each ending.

    Args:
        variants: token ids of each, at least one token long.
        given: tokens that all of them begin with and that do not count.
    """

    def __init__(self, variants: Sequence[list[int]], given: int = 1) -> None:
        shortest = min(len(ids) for ids in variants)
        common = 0
        while common < shortest and len({ids[common] for ids in variants}) == 1:
            common += 1
        self.common = common
        self.given = given
        self.tokens = list(variants[0][:common])
        self.positions = list(range(common))
        self.parents = [max(0, i - 1) for i in range(common)]
        self.ends: list[tuple[int, int]] = []
        for ids in variants:
            start = len(self.tokens)
            self.tokens += ids[common:]
            self.positions += range(common, len(ids))
            self.parents += [max(0, common - 1), *range(start, start + len(ids) - common - 1)][: len(ids) - common]
            self.ends.append((start, len(self.tokens)))
        self.width = len(self.tokens)

    def column(self, variant: int, place: int) -> int:
        """Where the token `place` of a variant stands; its last one where the text was cut before it."""
        if place < self.common:
            return place
        start, end = self.ends[variant]
        return min(start + place - self.common, max(end, self.common) - 1)

    def visible(self) -> Tensor:
        """[width, width], True where a token (row) may look."""
        causal = torch.ones(self.width, self.width, dtype=torch.bool).tril()
        seen = causal.clone()
        seen[:, self.common:] = False
        for start, end in self.ends:
            seen[start:end, start:end] = causal[start:end, start:end]
        return seen

    def losses(self, nll: Tensor) -> list[Loss]:
        """The loss of each variant, from the negative log-likelihoods [width] of the tree's tokens."""
        shared = float(nll[self.given: self.common].double().sum())
        return [(shared + float(nll[start: end].double().sum()), max(0, self.common - self.given) + end - start)
                for start, end in self.ends]
