"""Published networks in small, under their publishers' names and semantics, written independently of timm.

Legend: B batch, N tokens, C channels, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ClipVisual", "Maps", "dinov2_maps", "dinov2_state", "radio_maps", "radio_state", "random_state"]

Maps = list[Tensor]
State = dict[str, Tensor]
WIDTH, HEADS, DEPTH = 24, 3, 4


def random_state(shapes: dict[str, tuple[int, ...]], /) -> State:
    """Reproducible weights that leave nothing at one or zero."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        scale = 0.3 if len(shape) < 2 else 1 / max(1, shape[-1]) ** 0.5
        state[name] = drawn * scale + (1.0 if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")) else 0.0)
    return state


def to_map(tokens_BNC: Tensor, rows: int, columns: int, /) -> Tensor:
    return tokens_BNC.transpose(1, 2).unflatten(2, (rows, columns))


class _ClipBlock(nn.Module):
    """OpenAI's residual attention block: torch's own attention, QuickGELU."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, x_BNC: Tensor) -> Tensor:
        y_BNC = self.ln_1(x_BNC)
        x_BNC = x_BNC + self.attn(y_BNC, y_BNC, y_BNC, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x_BNC))
        return x_BNC + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class ClipVisual(nn.Module):
    """The image tower of CLIP, whose state dict has OpenAI's and OpenCLIP's names below ``visual.``."""

    def __init__(self, *, side: int, patch: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv1 = nn.Conv2d(3, WIDTH, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty((side // patch) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([_ClipBlock() for _ in range(DEPTH)])})
        self.proj = nn.Parameter(torch.empty(WIDTH, 16))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def maps(self, image_BCHW: Tensor) -> Maps:
        """The residual stream after every block, class token dropped."""
        patches = self.conv1(image_BCHW)
        x_BNC = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x_BNC, maps = self.ln_pre(x_BNC + self.positional_embedding), []
        for block in self.transformer["resblocks"]:
            x_BNC = block(x_BNC)
            maps.append(to_map(x_BNC[:, 1:], *patches.shape[-2:]))
        return maps


def attention(x_BNC: Tensor, state: State, prefix: str, /) -> Tensor:
    """Attention with fused query, key and value, spelt out."""
    qkv = functional.linear(x_BNC, state[f"{prefix}qkv.weight"], state[f"{prefix}qkv.bias"])
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
    mixed = (weights @ v).transpose(1, 2).flatten(2)
    return functional.linear(mixed, state[f"{prefix}proj.weight"], state[f"{prefix}proj.bias"])


def norm(x_BNC: Tensor, state: State, prefix: str, /) -> Tensor:
    return functional.layer_norm(x_BNC, (WIDTH,), state[f"{prefix}weight"], state[f"{prefix}bias"], eps=1e-6)


def linear(x_BNC: Tensor, state: State, prefix: str, /) -> Tensor:
    return functional.linear(x_BNC, state[f"{prefix}weight"], state[f"{prefix}bias"])


def block_shapes(prefix: str, mlp: dict[str, tuple[int, int]], /) -> dict[str, tuple[int, ...]]:
    """A transformer block without layer scale."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("norm1", "norm2"):
        shapes |= {f"{prefix}{name}.weight": (WIDTH,), f"{prefix}{name}.bias": (WIDTH,)}
    for name, (out, into) in {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), **mlp}.items():
        shapes |= {f"{prefix}{name}.weight": (out, into), f"{prefix}{name}.bias": (out,)}
    return shapes


GELU_MLP = {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
SWIGLU_HIDDEN = 64


def dinov2_state(*, side: int, patch: int, registers: int, swiglu: bool, chunked: bool = False) -> State:
    """Weights as facebookresearch/dinov2 saves them; ``chunked`` as its training checkpoints do."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, (side // patch) ** 2 + 1, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, WIDTH)
    mlp = {"mlp.w12": (2 * SWIGLU_HIDDEN, WIDTH), "mlp.w3": (WIDTH, SWIGLU_HIDDEN)} if swiglu else GELU_MLP
    for index in range(DEPTH):
        prefix = f"blocks.{index // 2}.{index}." if chunked else f"blocks.{index}."
        shapes |= block_shapes(prefix, mlp)
        shapes |= {f"{prefix}ls1.gamma": (WIDTH,), f"{prefix}ls2.gamma": (WIDTH,)}
    return random_state(shapes)


def dinov2_maps(state: State, image_BCHW: Tensor, /) -> Maps:
    """The residual stream of an unchunked DINOv2: registers come after the class token, without a position."""
    kernel = state["patch_embed.proj.weight"]
    patches = functional.conv2d(image_BCHW, kernel, state["patch_embed.proj.bias"], kernel.shape[-1])
    batch = len(patches)
    cls_BNC = state["cls_token"].expand(batch, -1, -1)
    x_BNC = torch.cat([cls_BNC, patches.flatten(2).transpose(1, 2)], dim=1) + state["pos_embed"]
    registers = state.get("register_tokens", torch.empty(1, 0, WIDTH)).expand(batch, -1, -1)
    x_BNC, maps = torch.cat([x_BNC[:, :1], registers, x_BNC[:, 1:]], dim=1), []
    for index in range(DEPTH):
        p = f"blocks.{index}."
        x_BNC = x_BNC + state[f"{p}ls1.gamma"] * attention(norm(x_BNC, state, f"{p}norm1."), state, f"{p}attn.")
        y_BNC = norm(x_BNC, state, f"{p}norm2.")
        if f"{p}mlp.w12.weight" in state:
            gate, value = linear(y_BNC, state, f"{p}mlp.w12.").chunk(2, dim=-1)
            y_BNC = linear(functional.silu(gate) * value, state, f"{p}mlp.w3.")
        else:
            y_BNC = linear(functional.gelu(linear(y_BNC, state, f"{p}mlp.fc1.")), state, f"{p}mlp.fc2.")
        x_BNC = x_BNC + state[f"{p}ls2.gamma"] * y_BNC
        maps.append(to_map(x_BNC[:, 1 + registers.shape[1] :], *patches.shape[-2:]))
    return maps


def radio_state(*, tokens: int, scale: str) -> State:
    """Weights as the transformers release of RADIO has them; ``scale`` names its layer scale, if it has one."""
    root = "radio_model.model."
    shapes: dict[str, tuple[int, ...]] = {
        f"{root}patch_generator.embedder.weight": (WIDTH, 3 * 16 * 16),
        f"{root}patch_generator.pos_embed": (1, 128 * 128, WIDTH),
        f"{root}patch_generator.cls_token.token": (tokens, WIDTH),
        "radio_model.input_conditioner.norm_mean": (3, 1, 1),
        "radio_model.input_conditioner.norm_std": (3, 1, 1),
        "radio_model.summary_idxs": (3,),
    }
    if not scale:
        shapes |= {f"{root}norm.weight": (WIDTH,), f"{root}norm.bias": (WIDTH,)}
    for index in range(DEPTH):
        shapes |= block_shapes(f"{root}blocks.{index}.", GELU_MLP)
        if scale:
            shapes |= {f"{root}blocks.{index}.{name}.{scale}": (WIDTH,) for name in ("ls1", "ls2")}
    return random_state(shapes)


def radio_maps(state: State, image_BCHW: Tensor, /, *, scale: str) -> Maps:
    """RADIO's residual stream: positions resized to a square of the longer side, then cut at the top left."""
    root = "radio_model.model."
    rows, columns = (side // 16 for side in image_BCHW.shape[-2:])
    patches_BNF = functional.unfold(image_BCHW, 16, stride=16).transpose(1, 2)
    x_BNC = functional.linear(patches_BNF, state[f"{root}patch_generator.embedder.weight"])
    grid = state[f"{root}patch_generator.pos_embed"].unflatten(1, (128, 128)).permute(0, 3, 1, 2)
    longer = max(rows, columns)
    grid = functional.interpolate(grid, size=(longer, longer), mode="bilinear", align_corners=True)
    x_BNC = x_BNC + grid[..., :rows, :columns].flatten(2).transpose(1, 2)
    tokens_NC = state[f"{root}patch_generator.cls_token.token"]
    x_BNC, maps = torch.cat([tokens_NC.expand(len(x_BNC), -1, -1), x_BNC], dim=1), []

    def scaled(name: str, y_BNC: Tensor) -> Tensor:
        return y_BNC * state[name] if scale else y_BNC

    for index in range(DEPTH):
        p = f"{root}blocks.{index}."
        x_BNC = x_BNC + scaled(f"{p}ls1.{scale}", attention(norm(x_BNC, state, f"{p}norm1."), state, f"{p}attn."))
        y_BNC = functional.gelu(linear(norm(x_BNC, state, f"{p}norm2."), state, f"{p}mlp.fc1."))
        x_BNC = x_BNC + scaled(f"{p}ls2.{scale}", linear(y_BNC, state, f"{p}mlp.fc2."))
        maps.append(to_map(x_BNC[:, len(tokens_NC) :], rows, columns))
    return maps
