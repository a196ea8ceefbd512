"""Published files to numpy: what each format is, and what is wrong with a damaged one."""
