"""Files to frames: what is found, what each promises, and every frame accounted for."""
