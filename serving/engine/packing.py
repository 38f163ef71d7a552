"""Linear layers on a CPU with their weights packed once, by oneDNN, instead of anew for each product.

A step of a batch multiplies some 2 to 32 rows with every weight; at so few rows the packing costs as much as the
product. Measured: `python -m benchmarks.serve_speed`, docs/measured.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ROWS = 16  # the layout is chosen for so many; any number can be multiplied


class PackedLinear(nn.Module):
    """The float32 linear layer that it is made from. It has no `weight`: there is only the packed copy."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = input.reshape(-1, self.in_features)
        added = rounded(len(rows)) - len(rows)
        if added:
            rows = nn.functional.pad(rows, (0, 0, 0, added))
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return product[: len(rows) - added].view(*input.shape[:-1], self.out_features)


def rounded(rows: int) -> int:
    """The next number that has three binary digits and then zeros.

    oneDNN makes code for each number of rows and keeps it, half a megabyte for a layer's size: so they must be few.
    """
    step: int = 2 ** max((rows - 1).bit_length() - 3, 0)
    return -(-rows // step) * step


@torch.inference_mode()
def pack(model: nn.Module) -> None:
    """Put packed layers in the place of a causal model's float32 ones on the CPU, in as much memory.

    Raises:
        AttributeError: the model's own code asks for the weights; it cannot be used any more.
    """
    if not torch.backends.mkldnn.is_available():
        return
    packed: dict[nn.Module, PackedLinear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        # Kinds of linear layers other than the plain one have their own way of multiplying.
        if type(module) is nn.Linear and (module in packed or _is_float32_on_cpu(module.weight)):
            if module not in packed:
                packed[module] = PackedLinear(module)
                module.weight = None  # type: ignore[assignment]  # let go of it now, not when all are packed
            model.set_submodule(name, packed[module])
    runs: Any = model
    runs(input_ids=torch.zeros(1, 2, dtype=torch.long, device=runs.device))


def _is_float32_on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32
