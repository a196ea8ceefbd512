"""One script for each claim on speed or safety; each prints the table that a document quotes."""
