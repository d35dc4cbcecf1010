"""Former name of `optex_rl.common.errors`."""

from optex_rl.common.errors import *  # noqa: F403
