"""`python -m mixfast.compare`: compares runs, with the paper's table, intervals and pictures."""
