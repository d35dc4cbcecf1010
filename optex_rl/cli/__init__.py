"""The command line: optex-rl train | evaluate | plot | compare | tune."""

from .commands import main as main
