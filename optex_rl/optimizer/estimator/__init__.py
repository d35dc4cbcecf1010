"""Prediction of gradients from their history: a Gaussian process, and two trivial baselines."""
