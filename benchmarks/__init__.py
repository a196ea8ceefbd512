"""One script for each claim in the README; each prints the table that is quoted there."""
