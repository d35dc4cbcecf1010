"""Former name of `optex_rl.bases.protocols`."""

from optex_rl.bases.protocols import *  # noqa: F403
