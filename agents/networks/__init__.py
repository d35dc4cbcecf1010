"""Networks of policies at N parameter sets at once, and their action distributions."""
