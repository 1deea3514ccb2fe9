"""Checkpoints to scores: test views of a split, and predictions for raw videos."""
