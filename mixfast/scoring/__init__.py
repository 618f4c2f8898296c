"""Scores of a trained encoder that need no further training."""
