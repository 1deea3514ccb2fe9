"""Jobs to checkpoints: recipes, sampling, the trainer and the loop around it."""
