"""How a model is asked: batch norm's statistics, order in memory, faster stand-ins for it."""
