"""What `python -m mixfast.compare` does: runs side by side, with the paper's table, intervals and pictures."""
