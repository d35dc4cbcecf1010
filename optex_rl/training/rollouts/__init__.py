"""Rollouts at N parameter sets at once: collection, normalisation, gradients and episode statistics."""
