"""A training run: its state, the loop, checkpoints, what it says about itself."""
