"""Classification of a one-dimensional signal by a Transformer encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.transformer.dropout import Dropout
from models.transformer.encoder import EncoderLayer, sinusoidal_positions


class Transformer(nn.Module):
    """Signal -> patches -> encoder layers -> mean over time -> logits.

    ``patch`` samples make one time step: attention costs the square of the number of steps, and
    a heartbeat's shape needs no finer grid than the waves it is made of.

    Args:
        length: samples a signal.
        num_classes: number of classes.
        dim: width of the encoder, a multiple of ``heads``.
        heads: attention heads.
        layers: encoder layers.
        feedforward: hidden width of the position-wise network.
        dropout: probability, after the embedding, in and after each sublayer.
        attention_dropout: probability with which an attention weight is dropped. 0, since others
            keep CPUs from the fused kernel, and ``dropout`` acts on what attention returns.
        patch: samples a time step; the signal is padded with zeros to a multiple.
        features: numbers that follow each signal and are no part of it, such as R-R intervals;
            embedded as one more time step, without position.

    Raises:
        ValueError: ``dim`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        length: int = 187,
        num_classes: int = 5,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        feedforward: int = 128,
        dropout: float = 0.1,
        patch: int = 4,
        attention_dropout: float = 0.0,
        features: int = 0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"--dim {dim}: must be a multiple of --heads {heads}")
        self.patch, self.length, self.features = patch, length, features
        steps = -(-length // patch)
        self.embedding = nn.Linear(patch, dim)
        # Not in the state: it follows from the arguments.
        self.register_buffer("positions", sinusoidal_positions(steps, dim), persistent=False)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, heads, feedforward, dropout, attention_dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)
        # Last, so that a network without it draws the weights that it always drew.
        self.feature_embedding = nn.Linear(features, dim) if features else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, classes) of inputs (B, length + features).

        Raises:
            ValueError: inputs of another width, which patches would hide.
        """
        width = self.length + self.features
        if inputs.size(1) != width:
            raise ValueError(f"inputs of {inputs.size(1)} numbers, this Transformer takes {width}")
        signals = F.pad(inputs[:, : self.length], (0, -self.length % self.patch))
        x = self.embedding(signals.unflatten(1, (-1, self.patch))) + self.positions  # (B, T, D)
        if self.feature_embedding is not None:
            x = torch.cat([x, self.feature_embedding(inputs[:, self.length :]).unsqueeze(1)], dim=1)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.norm(x).mean(dim=1))
