"""A user's own model: its weights, its data, its losses."""
