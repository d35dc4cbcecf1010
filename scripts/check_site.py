"""Check the built site: every public name has an entry, and search, formulas and plots work offline in a browser."""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import shutil
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
WINGS: Final = ("agents", "bases", "cluster", "envs", "sb3", "training")
PACKAGES: Final = ("optex_rl", *(f"optex_rl.{wing}" for wing in WINGS))
BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Off: everything that a browser does by itself and that needs a network.
FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
SECONDS: Final = 240.0  # for all pages together
SEARCHED: Final = "OptEx.tell"
TARGET: Final = "#optex_rl.OptEx.tell"  # which the search must find

# Opens the pages one after the other in a frame, and posts what is wrong with them, and how much it saw.
SCRIPT: Final = """\
<!doctype html><meta charset="utf-8"><iframe id="frame" style="width: 1200px; height: 900px"></iframe><script>
const wrong = [], seen = {pages: 0, images: 0, formulas: 0, fractions: 0, results: 0};
const frame = document.getElementById("frame");
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function open(page) {
  const loaded = new Promise((done) => frame.addEventListener("load", done, {once: true}));
  frame.src = page;
  await loaded;
  return frame.contentDocument;
}

function checkFormulas(page, doc) {
  for (const formula of doc.querySelectorAll("math")) {
    const box = formula.getBoundingClientRect();
    seen.formulas++;
    if (box.width < 2 || box.height < 2) wrong.push(`${page}: a formula is not drawn: ${formula.textContent}`);
  }
  for (const fraction of doc.querySelectorAll("mfrac")) {
    const [over, under] = [...fraction.children].map((part) => part.getBoundingClientRect());
    seen.fractions++;
    if (over.bottom > under.top + 2) wrong.push(`${page}: a fraction is not stacked: ${fraction.textContent}`);
  }
  const left = doc.querySelector(".arithmatex");
  if (left) wrong.push(`${page}: a formula was left as text: ${left.textContent}`);
}

async function checkPage(page) {
  const doc = await open(page);
  seen.pages++;
  for (const image of doc.images) {
    image.loading = "eager";
    seen.images++;
    try { await image.decode(); } catch (error) { wrong.push(`${page}: the image ${image.src} cannot be loaded`); }
  }
  checkFormulas(page, doc);
  for (const {name} of frame.contentWindow.performance.getEntriesByType("resource")) {
    if (!name.startsWith(location.origin) && !name.startsWith("data:") && !name.startsWith("blob:")) {
      wrong.push(`${page}: ${name} is loaded from elsewhere`);
    }
  }
}

async function checkSearch(query, target) {
  const doc = await open("index.html?q=" + encodeURIComponent(query));
  for (let tries = 0; tries < 300; tries++) {
    const links = [...doc.querySelectorAll("a.md-search-result__link")].map((link) => link.href);
    seen.results = links.length;
    if (links.some((link) => decodeURIComponent(link).split("?")[0].includes(target.split("#")[0]) &&
                             decodeURIComponent(link).includes(target))) return;
    await pause(100);
  }
  wrong.push(`the search for ${query} does not find ${target}`);
}

(async () => {
  try {
    const {pages, query, target} = await (await fetch("/pages")).json();
    for (const page of pages) await checkPage(page);
    await checkSearch(query, target);
  } catch (error) { wrong.push(String(error)); }
  await fetch("/report", {method: "POST", body: JSON.stringify({wrong, seen})});
})();
</script>
"""


def public_names() -> Iterator[tuple[str, Any]]:
    """The names that the packages give to users, as ``package.name``, with what they stand for."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            is_public = not name.startswith("_") and not inspect.ismodule(value)
            if is_public and getattr(value, "__module__", package).startswith("optex_rl"):
                yield f"{package}.{name}", value


def read_inventory(path: Path) -> set[str]:
    """The names that have an entry, from the objects.inv of the site (Sphinx's format, version 2)."""
    with path.open("rb") as file:
        for _ in range(4):
            file.readline()
        lines = zlib.decompress(file.read()).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines}


def without_entry(site: Path) -> list[str]:
    """What is wrong with the API reference."""
    documented, wrong = read_inventory(site / "objects.inv"), []
    for name, value in public_names():
        if name not in documented:
            wrong.append(f"{name} has no entry in the API reference")
        elif (inspect.isclass(value) or inspect.isfunction(value)) and not inspect.getdoc(value):
            wrong.append(f"{name} has no docstring")
        if inspect.isclass(value) and value.__module__.startswith("optex_rl"):
            methods = [method for method in vars(value) if not method.startswith("_")]
            wrong += [f"{name}.{m} has no entry" for m in methods if missing(value, m, name, documented)]
    return wrong


def missing(owner: type, attribute: str, name: str, documented: set[str]) -> bool:
    """Whether a method or property that has a docstring of its own is without an entry."""
    value = inspect.getattr_static(owner, attribute)
    value = getattr(value, "__func__", value)
    is_code = isinstance(value, property) or inspect.isfunction(value)
    return is_code and bool(value.__doc__) and f"{name}.{attribute}" not in documented


class Handler(SimpleHTTPRequestHandler):
    """Serves the site, the page that checks it, and takes its report."""

    pages: tuple[str, ...] = ()
    report: dict[str, Any] | None = None
    reported = threading.Event()

    def do_GET(self) -> None:
        """Serve a file, the checking page, or the list of pages."""
        if self.path == "/check":
            self._answer(SCRIPT.encode(), "text/html")
        elif self.path == "/pages":
            task = {"pages": self.pages, "query": SEARCHED, "target": TARGET}
            self._answer(json.dumps(task).encode(), "application/json")
        else:
            super().do_GET()

    def do_POST(self) -> None:
        """Take the report."""
        Handler.report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(b"", "text/plain")
        self.reported.set()

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


def look(site: Path) -> dict[str, Any]:
    """What the browser saw on all pages, and what was wrong with them."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit("check_site.py needs Chromium: apt-get install chromium")
    Handler.pages = tuple(sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html")))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *FLAGS, f"--user-data-dir={profile}", f"http://127.0.0.1:{server.server_port}/check"]
        command.insert(1, "--remote-debugging-port=0")  # stay open until told otherwise
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        Handler.reported.wait(SECONDS)
        process.terminate()
        process.wait()
    server.shutdown()
    return Handler.report or {"wrong": [f"the browser reported nothing within {SECONDS:g} s"], "seen": {}}


def main() -> None:
    """Check, print what is wrong and how much was seen; exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path, nargs="?", default=ROOT / "site")
    parser.add_argument("--no-browser", action="store_true", help="check the API reference only")
    options = parser.parse_args()
    wrong = without_entry(options.site)
    if not options.no_browser:
        report = look(options.site)
        wrong += report["wrong"]
        print("in the browser:", ", ".join(f"{count} {name}" for name, count in report["seen"].items()))
    print(f"{sum(1 for _ in public_names())} public names", *wrong, sep="\n")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
