"""Teacher features brought to one scale: per channel, or by PHI-S, from statistics of a sample.

Legend: N tokens, B batch, C channels, H W grid rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sak.errors import SakError, UnknownNameError

__all__ = ["STANDARDS", "Affine", "Moments", "apply_affine", "equalizing_rotation", "hadamard", "standardization"]

STANDARDS = ("none", "channel", "phi-s")
"""``none`` leaves features as they are, as published; ``channel`` gives every channel mean 0 and variance 1; ``phi-s``
does so by one rotation and one scale for all channels, which keeps angles and relative distances."""

_CONSTANT = 1e-6
"""Of a channel's size, a standard deviation that is none: as the difference of two sums it is known to some 1e-8."""


@dataclass(frozen=True, slots=True)
class Affine:
    """y = matrix · (x - mean), or scale · (x - mean) where there is no matrix.

    Shapes:
        mean: ``(C,)`` float32; scale ``(C,)``, matrix ``(C, C)`` or None.
    """

    mean: Tensor
    scale: Tensor | None = None
    matrix: Tensor | None = None

    def to(self, device: torch.device) -> Affine:
        """The same on a device."""
        return Affine.of_state({name: tensor.to(device) for name, tensor in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Its tensors by name, for a file."""
        named = {"mean": self.mean, "scale": self.scale, "matrix": self.matrix}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Affine:
        """From ``state``."""
        return cls(state["mean"], state.get("scale"), state.get("matrix"))


@dataclass(slots=True)
class Moments:
    """Mean and covariance of tokens, summed up in float64; a batch changes the result by nothing but rounding."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    outer: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, maps_BCHW: Tensor, /) -> None:
        """Count the tokens of a batch of maps."""
        tokens_NC = maps_BCHW.detach().cpu().double().movedim(1, -1).flatten(0, -2)
        self.count += len(tokens_NC)
        self.total = self.total + tokens_NC.sum(0)
        self.outer = self.outer + tokens_NC.T @ tokens_NC

    @property
    def mean_C(self) -> Tensor:
        """Mean of each channel, float64.

        Raises:
            SakError: Nothing was counted.
        """
        if self.count == 0:
            raise SakError("standardization: expected tokens to take statistics of, got none; give it rows")
        return self.total / self.count

    @property
    def covariance_CC(self) -> Tensor:
        """Covariance of the channels, float64, over the count itself."""
        return self.outer / self.count - torch.outer(self.mean_C, self.mean_C)


def standardization(kind: str, moments: Moments, /) -> Affine | None:
    """The map that a choice of ``STANDARDS`` means for features with these moments; None for ``none``.

    A channel that never changes is centred and not scaled; ``_CONSTANT`` says where rounding is all its variance.

    Raises:
        UnknownNameError: ``kind`` is not a choice.
        SakError: As ``Moments.mean_C``.

    Source: ``phi-s`` is PHI Standardization (Ranzinger et al. 2024, arXiv 2410.01680): with Σ = U Λ Uᵀ and a normalised
        Hadamard matrix H, y = α⁻¹ H Uᵀ (x - μ), α² = tr Σ / C. H exists for few C; where it is not built here,
        ``equalizing_rotation`` takes its place, which is as exact.
    """
    if kind not in STANDARDS:
        raise UnknownNameError(f"unknown standardization {kind!r}: expected one of {', '.join(STANDARDS)}")
    if kind == "none":
        return None
    variance_C = moments.covariance_CC.diagonal().clamp_min(0)
    mean_C, overall = moments.mean_C, variance_C.mean().sqrt()
    if kind == "channel":
        std_C = variance_C.sqrt()
        changes_C = std_C > _CONSTANT * (mean_C.abs() + overall)
        return Affine(mean_C.float(), torch.where(changes_C, 1 / std_C, 1.0).float())
    alpha = float(overall) if overall > _CONSTANT * mean_C.square().mean().sqrt() else 1.0
    return Affine(mean_C.float(), None, (_phi(moments.covariance_CC) / alpha).float())


def apply_affine(affine: Affine, maps_BCHW: Tensor, /) -> Tensor:
    """Standardize maps, in float32 whatever the autocast around.

    Shapes: ``(B, C, H, W)`` → the same.

    Raises:
        SakError: The maps have another number of channels.
    """
    if maps_BCHW.shape[1] != len(affine.mean):
        raise SakError(
            f"standardization: expected maps of {len(affine.mean)} channels, got {maps_BCHW.shape[1]}; these statistics"
            " are of another teacher or level"
        )
    turned_BCHW: Tensor
    with torch.autocast(maps_BCHW.device.type, enabled=False):
        centred_BCHW = maps_BCHW.float() - affine.mean.view(1, -1, 1, 1)
        if affine.matrix is not None:
            turned_BCHW = torch.einsum("kc,bchw->bkhw", affine.matrix, centred_BCHW)
            return turned_BCHW
        return centred_BCHW if affine.scale is None else centred_BCHW * affine.scale.view(1, -1, 1, 1)


def _phi(covariance_CC: Tensor) -> Tensor:
    """A rotation after which all channels have the same variance."""
    values_C, vectors_CC = torch.linalg.eigh(covariance_CC)
    # An eigenvector's sign is the library's whim; its largest entry shall be positive.
    largest_C = vectors_CC.gather(0, vectors_CC.abs().argmax(0, keepdim=True))[0]
    vectors_CC = vectors_CC * torch.where(largest_C < 0, -1.0, 1.0)
    mixing_CC = hadamard(len(values_C))
    if mixing_CC is None:
        mixing_CC = equalizing_rotation(values_C.tolist())
    turned_CC: Tensor = mixing_CC @ vectors_CC.T
    return turned_CC


def hadamard(order: int, /) -> Tensor | None:
    """A Hadamard matrix divided by √order, float64: orthogonal, all entries of one size; None where none is built.

    Sylvester's doubling, from 1 or from one of Paley's first kind: order 2ᵏ or 2ᵏ (q + 1), q a prime of 4n + 3.
    """
    doublings = 0
    while order % (1 << (doublings + 1)) == 0:
        doublings += 1
    for count in range(doublings, -1, -1):
        core = _paley(order >> count)
        if core is not None:
            for _ in range(count):
                core = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), core)
            return core / math.sqrt(order)
    return None


def _paley(order: int) -> Tensor | None:
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    prime = order - 1
    if prime % 4 != 3 or any(prime % factor == 0 for factor in range(2, math.isqrt(prime) + 1)):
        return None
    squares = {value * value % prime for value in range(1, prime)}
    signs = torch.tensor([0.0, *(1.0 if value in squares else -1.0 for value in range(1, prime))], dtype=torch.float64)
    index = torch.arange(prime)
    skew = torch.zeros(order, order, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = signs[(index[:, None] - index[None, :]) % prime]
    return skew + torch.eye(order, dtype=torch.float64)


def equalizing_rotation(variances: Sequence[float], /) -> Tensor:
    """An orthogonal Q such that Q diag(variances) Qᵀ has a constant diagonal, float64.

    Source: Bendel and Mickey 1978: each plane rotation of a value below the mean with one above it brings one of them
        to the mean.
    """
    size = len(variances)
    target = sum(variances) / size
    matrix = torch.diag(torch.tensor(variances, dtype=torch.float64))
    rotation = torch.eye(size, dtype=torch.float64)
    open_ = list(range(size))
    while len(open_) > 1:
        diagonal = matrix.diagonal().tolist()
        low, high = min(open_, key=diagonal.__getitem__), max(open_, key=diagonal.__getitem__)
        a, b, c = (float(matrix[i, j]) for i, j in ((low, low), (high, high), (low, high)))
        if b - target <= 0 or target - a <= 0:
            break
        # tan t solves (b - m) t² + 2 c t + (a - m) = 0; its discriminant is positive because a < m < b.
        root = math.sqrt(max(0.0, c * c - (a - target) * (b - target)))
        tangent = (-c + math.copysign(root, -c)) / (b - target)
        cos = 1 / math.sqrt(1 + tangent * tangent)
        sin = cos * tangent
        turn = torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
        pair = [low, high]
        matrix[pair] = turn @ matrix[pair]
        matrix[:, pair] = matrix[:, pair] @ turn.T
        rotation[pair] = turn @ rotation[pair]
        open_.remove(low)
    return rotation
