"""A run on disk: training and going on, its folder, checkpoints, log and plots."""
