"""What predicts gradients from their history: a Gaussian process, and two trivial baselines."""
