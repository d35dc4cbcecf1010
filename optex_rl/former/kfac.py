"""Former name of `optex_rl.bases.kfac`."""

from optex_rl.bases.kfac import *  # noqa: F403
