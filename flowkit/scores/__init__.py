"""Scores: their files, and the fusion of several to one."""
