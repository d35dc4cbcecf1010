"""Former name of `optex_rl.bases.natural`."""

from optex_rl.bases.natural import *  # noqa: F403
