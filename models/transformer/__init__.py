"""Transformer encoder that classifies a signal such as one heartbeat."""

from models.transformer.classifier import Transformer

__all__ = ["Transformer"]
