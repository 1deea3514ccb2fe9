"""Scores to figures: accuracy with intervals, as text, JSON and one page."""
