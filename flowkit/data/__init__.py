"""Records to tensors: splits, clips, stacks, augmentation and torch data sets."""
