"""Texts that begin alike as one tree: their common beginning is read once, each ending sees itself and the beginning.

Trees of many texts lie side by side in rows, each blind to the others by an attention mask, so nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_detox.generation.batching import filled_rows

Loss = tuple[float, int]


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


@dataclass
class TreeBatch:
    """Rows of trees.

    Attributes:
        places: for each tree in it: its number, its row and its first column.
        ids, positions: [b, s] token ids and where each stands in its text.
        parents: [b, s] the column of the token that predicts each.
        visible: [b, s, s], True where a token (row) may look.
    """

    places: list[tuple[int, int, int]]
    ids: Tensor
    positions: Tensor
    parents: Tensor
    visible: Tensor

    def nll(self, logits: Tensor) -> Tensor:
        """[b, s] negative log-likelihood of each token given its parent's logits [b, s, v]."""
        rows = []
        parents, ids = self.parents.to(logits.device), self.ids.to(logits.device)
        for row_logits, row_parents, row_ids in zip(logits, parents, ids, strict=True):
            normalisers = row_logits.float().logsumexp(-1)
            rows.append(normalisers[row_parents] - row_logits[row_parents, row_ids].float())
        return torch.stack(rows)


def tree_batches(trees: Sequence[Tree], budget: int) -> Iterator[TreeBatch]:
    """All trees in batches of at most `budget` tokens, or one row."""
    rows = filled_rows([tree.width for tree in trees])
    size = max(1, budget // max([1, *(tree.width for tree in trees)]))
    for first in range(0, len(rows), size):
        yield _batch(trees, rows[first: first + size])


def _batch(trees: Sequence[Tree], rows: Sequence[Sequence[int]]) -> TreeBatch:
    width = max(sum(trees[number].width for number in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    positions, parents = ids.clone(), ids.clone()
    visible = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)
    places = []
    for row, numbers in enumerate(rows):
        column = 0
        for number in numbers:
            tree = trees[number]
            part = slice(column, column + tree.width)
            ids[row, part] = torch.tensor(tree.tokens)
            positions[row, part] = torch.tensor(tree.positions)
            parents[row, part] = torch.tensor(tree.parents) + column
            visible[row, part, part] = tree.visible()
            places.append((number, row, column))
            column += tree.width
    return TreeBatch(places, ids, positions, parents, visible)
