"""Pairs of gray frames to fields: what a flow method is, and one file per implementation."""
