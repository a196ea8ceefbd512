"""What is drawn: surfaces on one scale, paths on them, repetitions, and the interactive page."""
