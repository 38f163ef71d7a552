"""Matrix products of few rows on a CPU: weights [out, in] times inputs, in the order that all cores can share.

A step of a batch multiplies 2 to some 64 rows. x W^T hands those few rows to the cores and packs the weights anew for
each product; (W x^T)^T, the same sums, hands them the thousands of rows of W. Measured with SmolLM2-135M on 2 cores:
`python -m benchmarks.serve_speed`, docs/measured.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MOST_ROWS = 256


class FewRowsLinear(nn.Linear):
    """The linear layer that it is made from, with the same parameters."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = input.reshape(-1, self.in_features)
        if not 1 < len(rows) <= _MOST_ROWS:
            return super().forward(input)
        product = self.weight @ rows.T if self.bias is None else torch.addmm(self.bias[:, None], self.weight, rows.T)
        return product.T.contiguous().view(*input.shape[:-1], self.out_features)


def for_few_rows(model: nn.Module) -> None:
    """Let the plain linear layers of a model on the CPU run so. With one thread there is nothing to share."""
    if torch.get_num_threads() == 1:
        return
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            model.set_submodule(name, FewRowsLinear(module))
