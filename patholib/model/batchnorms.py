"""BatchNorm over several processes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from patholib.base.team import Team


def share_batchnorm(model: nn.Module, team: Team) -> None:
    """Lets every BatchNorm of the model learn from the images of all processes, which share every batch.

    In train mode alone; of one process nothing is changed. Parameters, statistics and their names stay what they are.
    """
    if team.count == 1:
        return
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, _BatchNorm) and (kind := SHARED.get(type(norm))):
                setattr(parent, name, kind(norm, team))


class _Shared(_BatchNorm):
    """A BatchNorm whose statistics are those of the whole batch, of which this process has a share."""

    def __init__(self, norm: _BatchNorm, team: Team):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias, self.training = norm.weight, norm.bias, norm.training
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked, self.team = norm.num_batches_tracked, team

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (N, K, h, w), or (N, K), normalised; N may be 0 here, as long as other processes have images."""
        if not self.training:
            return super().forward(maps)
        normal, mean, variance, number = _Normalised.apply(maps, self.weight, self.bias, self.eps, self.team)
        # Every norm that is shared keeps statistics.
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            seen = self.momentum * (number > 0).to(mean.dtype)  # not in a pass that only keeps others company
            self.running_mean.lerp_(mean, seen)
            self.running_var.lerp_(variance * (number / (number - 1).clamp_min(1)), seen)
            self.num_batches_tracked.add_(number > 0)
        return normal


class _Shared1d(_Shared, nn.BatchNorm1d):
    """Of (N, K)."""


class _Shared2d(_Shared, nn.BatchNorm2d):
    """Of (N, K, h, w)."""


SHARED: dict[type[_BatchNorm], type[_Shared]] = {nn.BatchNorm1d: _Shared1d, nn.BatchNorm2d: _Shared2d}


class _Normalised(torch.autograd.Function):
    """Batch normalisation over the images of all processes; its gradient too is that of the whole batch.

    torch's SyncBatchNorm does so on GPUs alone. Processes exchange number, mean and squared deviations, not squares,
    whose difference would lose digits (Chan, Golub & LeVeque 1983, equation 2.1).
    """

    @staticmethod
    def forward(ctx, maps, weight, bias, eps, team):
        exact = torch.promote_types(maps.dtype, torch.float32)
        over, values = [0, *range(2, maps.ndim)], maps.to(exact)
        number = maps.numel() // maps.shape[1]  # of each channel
        spread, mean = torch.var_mean(values, over, correction=0) if number else 2 * [values.new_zeros(len(weight))]
        own = torch.cat([mean.new_tensor([number]), mean, spread * number]).double()
        numbers, means, spreads = team.gather(own).split([1, len(weight), len(weight)], dim=1)  # (processes, 1 or K)
        total = numbers.sum()
        mean = (numbers * means).sum(0) / total.clamp_min(1)
        variance = (spreads + numbers * (means - mean) ** 2).sum(0) / total.clamp_min(1)
        total, mean, variance = total.to(exact), mean.to(exact), variance.to(exact)
        ctx.save_for_backward(maps, weight, mean, (variance + eps).rsqrt(), total)
        ctx.team, ctx.over = team, over
        ctx.mark_non_differentiable(mean, variance, total)
        return functional.batch_norm(maps, mean, variance, weight, bias, False, 0.0, eps), mean, variance, total

    @staticmethod
    def backward(ctx, slope, *_):
        maps, weight, mean, scale, total = ctx.saved_tensors
        shape = (1, -1, *[1] * (maps.ndim - 2))
        slope, normal = slope.to(mean.dtype), (maps.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        of_weight, of_bias = (slope * normal).sum(ctx.over), slope.sum(ctx.over)  # of the images here
        both = ctx.team.gather(torch.stack([of_weight, of_bias])).sum(0) / total.clamp_min(1)  # (2, K), of all
        rest = slope - normal * both[0].view(shape) - both[1].view(shape)
        return (rest * (weight * scale).view(shape)).to(maps.dtype), of_weight, of_bias, None, None
