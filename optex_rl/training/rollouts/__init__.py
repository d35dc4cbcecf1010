"""Experience: collected and normalised at N parameter sets at once, and what comes of it."""
