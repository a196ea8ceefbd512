"""Small helpers that the scripts share: command line, files, checkpoints, progress."""
