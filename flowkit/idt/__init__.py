"""Hand-made features: improved dense trajectories, Fisher vectors, and the SVM on them."""
