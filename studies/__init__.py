"""What compares many runs."""
