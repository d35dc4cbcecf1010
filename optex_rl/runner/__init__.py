"""Runs on disk: training and resuming, run folders, checkpoints, logs and plots."""
