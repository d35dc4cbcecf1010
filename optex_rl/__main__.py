"""``python -m optex_rl`` is the command optex-rl."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
