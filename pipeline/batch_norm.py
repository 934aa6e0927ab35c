"""Batch normalisation by the statistics of the whole batch, where its rows are spread over ranks, on any device.

Legend: B rows of this rank, C channels, H W rows and columns.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["RankBatchNorm"]


class RankBatchNorm(nn.BatchNorm2d):
    """As ``BatchNorm2d`` over the rows of all ranks, which have equally many; in evaluation the same as it."""

    @classmethod
    def convert(cls, module: nn.BatchNorm2d, /) -> Self:
        """The same layer, with the very parameters and buffers of ``module``."""
        made = cls(module.num_features, eps=module.eps, momentum=module.momentum, affine=False)
        made.weight, made.bias = module.weight, module.bias
        made.running_mean, made.running_var = module.running_mean, module.running_var
        made.num_batches_tracked = module.num_batches_tracked
        return made.train(module.training)

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: ``(B, C, H, W)`` → ``(B, C, H, W)``."""
        if not self.training:
            return super().forward(input)
        feat_BCHW = input.float()
        mean_C = _mean(feat_BCHW.mean((0, 2, 3)))
        centred_BCHW = feat_BCHW - mean_C[:, None, None]
        variance_C = _mean(centred_BCHW.square().mean((0, 2, 3)))
        count = dist.get_world_size() * input.numel() // input.shape[1]
        self._track(mean_C.detach(), variance_C.detach() * count / max(count - 1, 1))
        scale_C = self.weight * torch.rsqrt(variance_C + self.eps)
        return (centred_BCHW * scale_C[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    def _track(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(variance_C, self.momentum)


class _Sum(torch.autograd.Function):
    """The sum over all ranks; a gradient is the sum of all ranks' as well, since all of them depend on it."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _mean(value: Tensor) -> Tensor:
    """Over all ranks; gradients pass."""
    summed: Tensor = _Sum.apply(value)
    return summed / dist.get_world_size()
