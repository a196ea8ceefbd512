"""The training scripts and what they share."""
