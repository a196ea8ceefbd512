"""How sharp or flat a minimum is: what each measure is, how it is taken, and the files of them."""
