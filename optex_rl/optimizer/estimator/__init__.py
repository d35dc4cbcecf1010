"""What predicts gradients from their history: a Gaussian process, and its rivals."""
