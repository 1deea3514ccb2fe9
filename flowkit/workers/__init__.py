"""Processes: a pool that survives its tasks, child processes, signals, what a machine has."""
