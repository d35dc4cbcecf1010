"""The command line: optex-rl train | evaluate | plot | compare."""

from .commands import main as main
