"""Former name of `optex_rl.bases.adapters`."""

from optex_rl.bases.adapters import *  # noqa: F403
