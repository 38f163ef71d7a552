"""A key-value cache for a batch whose rows come and go.

All rows end at the same column, so the padding is on the left, as in a padded batch that `generate` runs; positions
and masks are then what every Hugging Face model understands, sliding windows and ALiBi included. A new row is copied
in to end at the current column, a finished one is replaced by the last row, and a step writes one column in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_FIRST_COLUMNS = 128
_GROWTH = 1.5


@dataclass
class _Window:
    """Which part of the buffers is in use: rows [0, rows), columns [start, end)."""

    rows: int = 0
    start: int = 0
    end: int = 0


class _Layer(CacheLayerMixin):
    """One layer's keys and values, [rows, heads, columns, size]; `update` writes the step's column."""

    keys: Tensor
    values: Tensor
    is_sliding = False  # the whole past is kept; the mask hides what is outside a window

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise RuntimeError("rows are added before a step runs")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        w = self.window
        self.keys[: w.rows, :, w.end] = key_states[:, :, 0]
        self.values[: w.rows, :, w.end] = value_states[:, :, 0]
        shown = slice(w.start, w.end + 1)
        return self.keys[: w.rows, :, shown], self.values[: w.rows, :, shown]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.end - self.window.start

    def get_max_length(self) -> int:
        return -1


@dataclass
class BatchCache:
    """The rows of the running batch. Lengths are in tokens."""

    lengths: list[int] = field(default_factory=list)
    _window: _Window = field(default_factory=_Window)
    _cache: Any = None

    def add(self, prefilled: Any, lengths: Sequence[int]) -> None:
        """Append rows from the DynamicCache of a forward pass over left-padded prompts of these lengths."""
        if not self.lengths:
            self._start(prefilled)
        longest, w = max(lengths), self._window
        count = len(self.lengths) + len(lengths)
        self._make_room(rows=count, least_end=longest)
        for layer, new in zip(self._cache.layers, prefilled.layers, strict=True):
            rows, columns = slice(len(self.lengths), count), slice(w.end - longest, w.end)
            layer.keys[rows, :, columns] = new.keys[:, :, -longest:]
            layer.values[rows, :, columns] = new.values[:, :, -longest:]
        self.lengths.extend(lengths)
        self._fit()

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            shown = slice(self._window.end - self.lengths[last], self._window.end)
            for layer in self._cache.layers:
                layer.keys[row, :, shown] = layer.keys[last, :, shown]
                layer.values[row, :, shown] = layer.values[last, :, shown]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()
        self._fit()
        if not self.lengths:
            self._cache, self._window = None, _Window()

    def step(self, device: torch.device) -> tuple[Any, Tensor, Tensor]:
        """Room for one more token a row: (cache, attention mask [rows, width + 1], position ids [rows, 1])."""
        self._make_room(rows=len(self.lengths), least_end=0)
        lengths = torch.tensor(self.lengths, device=device)
        width = max(self.lengths)
        mask = torch.arange(width + 1, device=device) >= (width - lengths)[:, None]
        return self._cache, mask.long(), lengths[:, None]

    def stepped(self) -> None:
        """The step's column is filled."""
        self._window.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        self._fit()

    def _start(self, prefilled: Any) -> None:
        self._window = _Window()
        self._cache = Cache(layers=[_Layer(self._window) for _ in prefilled.layers])
        for layer, new in zip(self._cache.layers, prefilled.layers, strict=True):
            layer.keys = new.keys.new_zeros(0, new.keys.shape[1], 0, new.keys.shape[3])
            layer.values = new.values.new_zeros(0, new.values.shape[1], 0, new.values.shape[3])
            layer.is_initialized = True

    def _fit(self) -> None:
        self._window.rows = len(self.lengths)
        self._window.start = self._window.end - max(self.lengths, default=0)

    def _make_room(self, *, rows: int, least_end: int) -> None:
        """Let the buffers hold so many rows and one more column, the rows ending at `least_end` or to its right."""
        w, buffer = self._window, self._cache.layers[0].keys
        width, columns, capacity = w.end - w.start, buffer.shape[2], buffer.shape[0]
        end = max(w.end, least_end)
        if end + 1 > columns or rows > capacity:
            end = max(width, least_end)
            if (end + 1) * _GROWTH > columns or rows > capacity:
                columns = max(_FIRST_COLUMNS, int((end + 1) * _GROWTH))
        if rows > capacity:
            capacity = max(rows, int(capacity * _GROWTH))
        if (end, columns, capacity) == (w.end, buffer.shape[2], buffer.shape[0]):
            return
        for layer in self._cache.layers:
            layer.keys = self._moved(layer.keys, capacity, columns, end)
            layer.values = self._moved(layer.values, capacity, columns, end)
        w.start, w.end = end - width, end

    def _moved(self, buffer: Tensor, rows: int, columns: int, end: int) -> Tensor:
        w = self._window
        content = buffer[: w.rows, :, w.start : w.end]
        if (rows, columns) == (buffer.shape[0], buffer.shape[2]):
            content = content.clone()  # source and target overlap
        else:
            buffer = buffer.new_zeros(rows, buffer.shape[1], columns, buffer.shape[3])
        buffer[: w.rows, :, end - content.shape[2] : end] = content
        return buffer
