"""A key-value cache whose full-attention layers have room for the whole continuation from the start.

transformers' own layers grow by concatenation, which copies every row's history in every layer at every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [b, heads, seen, d] as views into storage for `room` columns."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self._storage: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns; returns all that are filled."""
        before = self.get_seq_length()
        seen = before + key_states.shape[-2]
        if self._storage is None:
            self.dtype, self.device = key_states.dtype, key_states.device
            self._storage = (_space(key_states, len(key_states), self.room), _space(value_states, len(key_states),
                                                                                    self.room))
            self.is_initialized = True
        for stored, new in zip(self._storage, (key_states, value_states), strict=True):
            stored[:, :, before:seen] = new
        self._show(seen)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Take these rows of the batch, each as often as it is named; only filled columns are copied."""
        if self._storage is None:
            return
        seen = self.get_seq_length()
        moved = []
        for stored in self._storage:
            space = _space(stored, len(indices), self.room)
            torch.index_select(stored[:, :, :seen], 0, indices, out=space[:, :, :seen])
            moved.append(space)
        self._storage = (moved[0], moved[1])
        self._show(seen)

    def _show(self, seen: int) -> None:
        self.keys, self.values = (stored[:, :, :seen] for stored in self._storage or ())


def _space(like: Tensor, rows: int, room: int) -> Tensor:
    return like.new_empty(rows, like.shape[1], room, like.shape[3])


def roomy_cache(config: PretrainedConfig, room: int) -> DynamicCache:
    """The cache that the model's own configuration asks for, its growing layers replaced by those with room.

    Layers of other kinds (sliding windows, state spaces) stay as they are.
    """
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
