"""Benchmarks of the operations and of the training step against named peers; `python -m benchmarks` runs them."""
