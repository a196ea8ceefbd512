"""Whole or not at all: downloads, archives, arrays and caches."""
