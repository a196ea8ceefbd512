"""The encoder of Vaswani et al. 2017 (arXiv:1706.03762), normalised before each sublayer.

Shapes: B batch, T time steps, D width, H heads.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.transformer.dropout import Dropout


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Sinusoidal positional encoding (Vaswani et al. 2017, section 3.5), (length, dim)."""
    position = torch.arange(length).unsqueeze(1)  # (T, 1)
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10_000.0) / dim))  # (D / 2,)
    encoding = torch.zeros(length, dim)
    encoding[:, 0::2] = torch.sin(position * rate)
    encoding[:, 1::2] = torch.cos(position * rate)[:, : dim // 2]
    return encoding


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2).

    With ``dropout`` of its weights torch has no fused kernel for CPUs and writes all of them out;
    and that kernel is slower in 16 bits than in 32, so autocast leaves it out there.
    """

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        qkv = self.qkv(x)
        widened = qkv.dtype.itemsize < 4 and qkv.device.type == "cpu"
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D / H)
            for part in (qkv.float() if widened else qkv).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        with torch.autocast("cpu", enabled=False) if widened else nullcontext():
            attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.output(attended.transpose(1, 2).flatten(-2).to(qkv.dtype))


class FeedForward(nn.Sequential):
    """Position-wise feed-forward network (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, dim)
        )


class EncoderLayer(nn.Module):
    """Attention and feed-forward network, each normalised before and added to its input."""

    def __init__(
        self, dim: int, heads: int, hidden: int, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads, attention_dropout)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, hidden, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
