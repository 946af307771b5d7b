"""A small Llama in plain PyTorch, with the names and shapes of the Hugging Face checkpoint.

Training only needs the logits at some places, and no cache: a third less work than the full class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the model."""

    vocab_size: int
    n_layers: int = 4
    width: int = 128
    n_heads: int = 4  # of width 32, the smallest that vLLM's attention takes
    mlp_width: int = 288
    context_length: int = 2048
    rope_theta: float = 1_000_000.0  # half of each head turns so slowly that it matches words at any distance
    norm_eps: float = 1e-5


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            project(x).view(n, t, self.n_heads, -1).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (a * cos + _rotated(a) * sin for a in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(n, t, width))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.down_proj = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each with a norm before it and a skip around it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Hidden states in, by `forward`; logits where they are wanted, by `logits`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.norm_eps)
        half = torch.arange(0, shape.width // shape.n_heads, 2) / (shape.width // shape.n_heads)
        angles = torch.outer(torch.arange(shape.context_length), shape.rope_theta**-half).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=_initial_std(name))
        for layer in self.layers[1:]:
            # Equal queries and keys: words attend to the same words from the start (Trockman and Kolter 2023).
            layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight.data)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids [n, t] -> hidden states [n, t, width] after the last norm."""
        return self.forward_with_inputs(ids)[0]

    def forward_with_inputs(self, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `forward`, and what went into each layer."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        inputs = []
        for layer in self.layers:
            inputs.append(x)
            x = layer(x, cos, sin)
        return self.norm(x), inputs

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., width] -> logits [..., vocabulary]; the embeddings are tied."""
        return hidden @ self.embed_tokens.weight.T


def attention_loss(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, n_heads: int, targets: Tensor) -> Tensor:
    """How far the first heads of `layer` are from attending to `targets` only.

    Args:
        x: what goes into the layer, [n, t, width].
        n_heads: how many heads, from the first.
        targets: [n, t, t], true where a position (second axis) should attend to another (third axis).

    Returns:
        The mean of -log of the attention on targets, over the positions that have any; 0 where none has.
    """
    n, t, width = x.shape
    u = layer.input_layernorm(x)
    q, k = (
        project(u).view(n, t, layer.self_attn.n_heads, -1).transpose(1, 2)[:, :n_heads].float()
        for project in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    q, k = (a * cos + _rotated(a) * sin for a in (q, k))
    scores = q @ k.transpose(-1, -2) / (width // layer.self_attn.n_heads) ** 0.5
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, -1e9).log_softmax(-1)
    on_targets = shares.masked_fill(~targets[:, None], -1e9).logsumexp(-1)
    has_any = targets.any(-1)[:, None].expand_as(on_targets)
    return -(on_targets * has_any).sum() / has_any.sum().clamp(min=1)


def _initial_std(name: str) -> float:
    if "embed" in name:
        return 0.02
    return 0.035 if "o_proj" in name or "down_proj" in name else 0.07


def _rotated(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
