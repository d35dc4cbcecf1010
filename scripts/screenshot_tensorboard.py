"""A screenshot of TensorBoard in a headless Chromium, and a check that the learning curve comes first.

    optex-rl train --method vanilla --run-name vanilla --logdir runs/tensorboard
    optex-rl train --run-name optex --logdir runs/tensorboard
    python scripts/screenshot_tensorboard.py runs/tensorboard tensorboard.png

Prints the groups of the page from top to bottom; fails unless the first is `curve`. Needs Chromium
(Debian: `apt-get install chromium`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FLAGS: Final = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1500,900")
MOST_SECONDS: Final = 120.0
SETTLING: Final = 30_000  # milliseconds that the page has for its requests and drawings


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """A server, once it has read the folder; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for_runs(address)
            yield address
        finally:
            process.terminate()


def wait_for_runs(address: str) -> None:
    """Return when the server has found a run; SystemExit after `MOST_SECONDS`."""
    deadline = time.monotonic() + MOST_SECONDS
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/data/runs") as answer:
                if answer.read() != b"[]":
                    return
        except OSError:  # not up yet
            pass
        time.sleep(0.5)
    sys.exit(f"TensorBoard found no run within {MOST_SECONDS:.0f} s")


def open_page(chromium: str, address: str, *flags: str) -> str:
    """What Chromium prints when it opens the page."""
    command = [chromium, *FLAGS, f"--virtual-time-budget={SETTLING}", *flags, address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=2 * MOST_SECONDS).stdout


def groups_of(page: str) -> list[str]:
    """Names of the groups of cards in a page, from top to bottom."""
    return re.findall(r'class="group-title" title="([^"]*)"', page)


def main() -> None:
    """Parse the flags, take the picture, check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=Path)
    parser.add_argument("output", type=Path, help="a PNG file")
    parser.add_argument("--page", default="timeseries", help="or custom_scalars, text, hparams, which are not checked")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium", help="the Chromium program")
    options = parser.parse_args()
    with tensorboard(options.logdir) as address:
        # Lines as SVG: without a graphics card the canvas stays empty.
        page = f"{address}/?forceSVG=true#{options.page}"
        open_page(options.chromium, page, f"--screenshot={options.output.resolve()}")
        if options.page != "timeseries":
            return
        groups = groups_of(open_page(options.chromium, page, "--dump-dom"))
    print(f"{options.output}: {', '.join(groups)}")
    if groups[:1] != ["curve"]:
        sys.exit("the first group is not the learning curve")


if __name__ == "__main__":
    main()
