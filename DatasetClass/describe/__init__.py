"""What is in a data set: counts, sources and pictures."""
