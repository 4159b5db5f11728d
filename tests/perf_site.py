"""How fast the catalogue answers in a browser, and how heavy its page is: part S of `python -m tests.perf`.

Processor time of the page's thread in headless Chromium (the protocol's `threadTicks`), from the letter typed or box
ticked to the page laid out again, median of `REPEATS` each (one for the long list); wall-clock time stands beside it in
the details. Needs the built site (`make site`) and Chromium. For the list of 5,000 papers the built page gets the rows
that render makes of a synthetic catalogue (`scale.py`).
"""

import gzip
import re
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts import catalog, lists
from tests import scale

SITE = catalog.ROOT / "_site"
LARGE = 5000
REPEATS = 7
# Sets a control and reads a height, which makes the browser lay the page out; gives milliseconds.
ANSWER = """([selector, value]) => {
  const control = document.querySelector(selector);
  const start = performance.now();
  if (control.type === "checkbox") control.checked = value; else control.value = value;
  control.dispatchEvent(new Event("input", {bubbles: true}));
  document.querySelector(".entries").offsetHeight;
  return performance.now() - start;
}"""
STEPS = [
    ("[name=q]", "77", ""),
    ("[name=q]", "pruning channels", ""),
    ("[name=granularity][value=head]", True, False),
    ("[name=family][value=pruning]", True, False),
]


def first_load(page: Path) -> int:
    """Bytes of a page and the scripts, styles and pictures that it names, compressed; not the search index."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^":]+\.(?:js|css|svg|png))(?=["?])', text)
    files = {page, *((page.parent / name).resolve() for name in named)}
    return sum(len(gzip.compress(file.read_bytes())) for file in files if "search" not in file.name)


def large_page(folder: Path) -> Path:
    """A copy of the built list of papers with `LARGE` synthetic entries, beside links to the rest of the site."""
    root = scale.catalogue(folder / "catalogue", LARGE * 4 // 3)
    document, vocab = catalog.read(root / "papers.yaml"), catalog.vocabulary(root).data
    measured = {paper["id"]: "no" for paper in document.data}
    text = lists.page("papers", document, vocab, {}, "", {"papers": set(measured)}, measured)
    built = (SITE / "generated" / "papers.html").read_text(encoding="utf-8")
    rows = text[text.index('<div class="catalogue"') :].rstrip()
    start, end = built.index('<div class="catalogue"'), built.index("</article>")
    for name in ("assets", "javascripts", "stylesheets", "pictures"):
        (folder / name).symlink_to(SITE / name)
    (folder / "generated").mkdir()
    (folder / "generated" / "data").symlink_to(SITE / "generated" / "data")
    page = folder / "generated" / "papers.html"
    page.write_text(built[:start] + rows + built[end:], encoding="utf-8")
    return page


def answers(browser, page: Path, repeats: int) -> tuple[int, list[float], list[float]]:
    """Number of entries of a list page, and the median milliseconds of each step, of the thread and on the wall."""
    tab = browser.new_page()
    tab.set_default_timeout(300_000)
    tab.goto(page.as_uri())
    protocol = tab.context.new_cdp_session(tab)
    protocol.send("Performance.enable", {"timeDomain": "threadTicks"})

    def thread_ms() -> float:
        found = protocol.send("Performance.getMetrics")["metrics"]
        return 1000 * next(m["value"] for m in found if m["name"] == "TaskDuration")

    count = int(re.search(r"of (\d+)", tab.locator(".catalogue output").inner_text())[1])
    times, wall = [], []
    for selector, value, before in STEPS:
        if not tab.locator(selector).count():  # all synthetic papers are of one family: no filter for it
            continue
        found = []
        for _ in range(repeats):
            start = thread_ms()
            clock = tab.evaluate(ANSWER, [selector, value])
            found.append((thread_ms() - start, clock))
            tab.evaluate(ANSWER, [selector, before])
        times.append(statistics.median(ms for ms, _ in found))
        wall.append(statistics.median(clock for _, clock in found))
    tab.close()
    return count, times, wall


def rows() -> Iterator[tuple]:
    """The fields of `perf.Row`: weight of the first load, slowest answer today and at `LARGE` entries."""
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    page = SITE / "generated" / "papers.html"
    weight = first_load(page) / 1000 if page.exists() else None
    yield "S", "first load of the list of papers, compressed", "kB", weight, ("at most", 300), {}
    if browser_path is None or weight is None:
        yield "S", "filter of the list of papers (needs `make site`, Chromium)", "ms", None, ("at most", 50), {}
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for path, bound, repeats in ((page, 50, REPEATS), (large_page(Path(folder)), 200, 1)):
            count, times, wall = answers(browser, path, repeats)
            details = {"entries": count, "steps_ms": times, "wall_ms": wall}
            yield "S", f"slowest filter of {count} papers", "ms", max(times), ("at most", bound), details
        browser.close()
