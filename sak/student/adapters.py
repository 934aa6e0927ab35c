"""Adapter paths: one light residual path per teacher beside the shared stem.

Legend: B batch, N patch tokens, C stem width.
"""

from __future__ import annotations

from torch import Tensor, nn, ones
from torch.utils.checkpoint import checkpoint

from sak.errors import SakError

__all__ = ["Adapter", "AdapterPath"]


class Adapter(nn.Module):
    """A(z) = z + scale · up(GELU(down(z))), per token.

    Source: published adapter; the scale starts at 1.
    """

    def __init__(self, width: int, *, down_ratio: int) -> None:
        """Make an adapter for tokens of ``width`` channels with a bottleneck of ``width // down_ratio``.

        Raises:
            SakError: the bottleneck would be empty.
        """
        super().__init__()
        if width < down_ratio:
            raise SakError(f"adapter: expected down_ratio at most the stem width {width}, got {down_ratio}; lower it")
        self.down = nn.Linear(width, width // down_ratio)
        self.act = nn.GELU()
        self.up = nn.Linear(width // down_ratio, width)
        self.scale = nn.Parameter(ones(1))

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Shapes: ``(B, N, C)`` → ``(B, N, C)``."""
        delta_BNC: Tensor = self.up(self.act(self.down(tokens_BNC)))
        return tokens_BNC + self.scale * delta_BNC


class AdapterPath(nn.ModuleList):
    """One teacher's path (TSAP): r₀ = A₀(x₀) and rᵢ = Aᵢ(rᵢ₋₁ + xᵢ).

    x₀ are the stem's patch tokens before its first block, xᵢ those after its i-th. Prefix tokens never enter: adapters
    work token by token, so the patch tokens come out the same without them.
    """

    def __init__(self, width: int, *, blocks: int, down_ratio: int) -> None:
        """Make the path for a stem of that many blocks: ``blocks + 1`` adapters."""
        super().__init__(Adapter(width, down_ratio=down_ratio) for _ in range(blocks + 1))

    def scales(self) -> list[Tensor]:
        """The learnable scale of each adapter, before the first block and after each."""
        return [adapter.get_parameter("scale") for adapter in self]

    def forward(self, stages_BNC: list[Tensor], levels: tuple[int, ...], *, recompute: bool = False) -> list[Tensor]:
        """Run the path along the stem.

        Args:
            stages_BNC: Patch tokens before the first block, then after each block.
            levels: Blocks whose path state is returned.
            recompute: Keep no activations inside adapters; the backward pass computes them again.

        Shapes: ``blocks + 1`` of ``(B, N, C)`` → one ``(B, N, C)`` a level.
        """
        state_BNC: Tensor | None = None
        states = []
        for adapter, tokens_BNC in zip(self, stages_BNC, strict=True):
            summed_BNC = tokens_BNC if state_BNC is None else state_BNC + tokens_BNC
            state_BNC = checkpoint(adapter, summed_BNC, use_reentrant=False) if recompute else adapter(summed_BNC)
            states.append(state_BNC)
        return [states[level + 1] for level in levels]
