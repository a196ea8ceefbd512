"""What is measured at the points of a surface, and by whom: flags, faster ways, grids, workers."""
