"""The networks, the weights they start from, and the checkpoints they end in."""
