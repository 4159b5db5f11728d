"""The built site in Chromium, opened from disk: finder, address, keys, phone, no script, no request outside."""

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from scripts import catalog, export, render

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]'")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
PAGE_TYPES = (
    "index.html",
    "taxonomy.html",
    "generated/papers.html",
    "generated/tools.html",
    "generated/articles.html",
    "generated/papers/obs-diff.html",
    "generated/claims.html",
    "generated/results.html",
    "generated/speed.html",
    "generated/curves.html",
    "generated/criteria.html",
    "generated/lab.html",
    "generated/runs.html",
    "generated/glossary.html",
)

# axe takes its time over long lists: a view of a list has the same elements.
VIEWS = {"papers": "#q=obs-diff", "tools": "#kind=library", "articles": "#kind=critique"}


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The site of the shipped catalogue, built once, away from the working tree."""
    root = tmp_path_factory.mktemp("site")
    for name in ("reference", "scripts"):  # the API pages read the code
        (root / name).symlink_to(catalog.ROOT / name)
    for name in ("schemas", "site"):
        shutil.copytree(catalog.ROOT / name, root / name, ignore=shutil.ignore_patterns("generated"))
    for name in ("papers.yaml", "tools.yaml", "articles.yaml", "links.lock.json", "mkdocs.yml", "README.md"):
        shutil.copy(catalog.ROOT / name, root)
    assert render.main([], root) == 0
    assert export.main([str(root / "site/generated/data")], root) == 0
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=root, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return root / "_site"


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for the tests of a file: a process may start only one at a time."""
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, site):
    """Opens a page from disk; fails the test for a message in the console or a request that leaves the site."""
    contexts, complaints = [], []

    def go(path: str, **context):
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not _inside(r.url, site) else None)
        page.goto(f"file://{site}/{path}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def _inside(url: str, site: Path) -> bool:
    return url.startswith((f"file://{site}/", "data:", "blob:", "about:"))


def shown(page) -> list[str]:
    """Ids of the entries that can be seen, in order."""
    return page.eval_on_selector_all(".entries > li:not([hidden])", "items => items.map(item => item.id)")


def papers() -> list[dict]:
    return catalog.read(catalog.ROOT / "papers.yaml").data


# The list of papers


def test_search_and_filters_show_what_the_catalogue_says(tab):
    page = tab("generated/papers.html")
    assert sorted(shown(page)) == sorted(p["id"] for p in papers())

    page.get_by_label("Head", exact=False).and_(page.locator("[name=granularity][value=head]")).check()
    heads = {p["id"] for p in papers() if "head" in p["granularity"]}
    assert set(shown(page)) == heads
    page.locator("[name=granularity][value=block]").check()  # within a facet: one or the other
    either = {p["id"] for p in papers() if {"head", "block"} & set(p["granularity"])}
    assert set(shown(page)) == either > heads
    page.locator("[name=family][value=pruning]").check()  # between facets: both
    both = {p["id"] for p in papers() if p["id"] in either and p["family"] == "pruning"}
    assert set(shown(page)) == both < either
    assert page.locator("output").inner_text() == f"{len(both)} of {len(papers())} papers, 3 filters"
    # A value counts what ticking it adds, given the other facets.
    count = sum("channel" in p["granularity"] and p["family"] == "pruning" for p in papers())
    assert page.locator("label:has([name=granularity][value=channel]) span").inner_text() == str(count)

    page.locator("[name=q]").fill("OBS-diff zhu")  # words in any order and case
    assert shown(page) == ["obs-diff"]
    page.locator("[name=q]").fill("nothing has these words")
    assert shown(page) == []
    page.get_by_role("button", name="Clear all").click()
    page.wait_for_function("document.querySelectorAll('.entries > li[hidden]').length === 0")
    assert page.locator("[name=family]:checked").count() == 0


def test_state_goes_into_the_address_and_back(tab):
    page = tab("generated/papers.html")
    page.locator("[name=granularity][value='N:M']").check()
    page.locator("[name=code][value=official]").check()
    page.locator("[name=sort]").select_option("title")
    page.locator("[name=q]").fill("sparsity")
    before, address = shown(page), page.url
    assert "#q=sparsity&granularity=N:M&code=official&sort=title" in address
    assert 0 < len(before) < 30

    again = tab(f"generated/papers.html#{address.split('#')[1]}")
    assert shown(again) == before
    assert again.locator("[name=granularity][value='N:M']").is_checked()
    assert again.locator("[name=q]").input_value() == "sparsity"

    page.locator("[name=code][value=official]").uncheck()
    assert len(shown(page)) > len(before)
    page.go_back()
    assert shown(page) == before
    nonsense = tab("generated/papers.html#granularity=%3Cscript%3E&sort=nonsense&q=")
    assert len(shown(nonsense)) == len(papers())


def test_orders(tab):
    page = tab("generated/papers.html")
    by_id = {p["id"]: p for p in papers()}
    dates = [(by_id[i]["year"], by_id[i].get("month", 0)) for i in shown(page)]
    assert dates == sorted(dates, reverse=True)
    page.locator("[name=sort]").select_option("oldest")
    dates = [(by_id[i]["year"], by_id[i].get("month", 0)) for i in shown(page)]
    assert dates == sorted(dates)
    page.locator("[name=sort]").select_option("claims")
    counts = [len(by_id[i].get("claims", [])) for i in shown(page)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1] == 0


def test_bibtex_of_the_view(tab):
    page = tab("generated/papers.html#q=obs-diff+zhu")
    page.get_by_role("button", name="BibTeX of this view").click()
    text = page.locator("textarea")
    page.wait_for_function("document.querySelector('textarea').value !== ''")
    paper = next(p for p in papers() if p["id"] == "obs-diff")
    assert text.input_value() == export.bib_entry(paper)
    page.locator("[name=q]").fill("wanda")
    page.wait_for_function("document.querySelector('textarea').value.includes('{wanda,')")
    assert text.input_value().count("\n@") + 1 == len(shown(page))


def test_by_keyboard_alone(tab):
    page = tab("generated/papers.html")
    page.locator("[name=q]").focus()
    page.keyboard.type("obs-diff zhu")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent").startswith("OBS-Diff")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.name") == "q"
    for _ in range(40):  # tab reaches a filter, the space bar ticks it
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.type") == "checkbox":
            break
    page.keyboard.press("Space")
    assert page.locator(".finder :checked[type=checkbox]").count() == 1
    page.locator("[name=q]").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/obs-diff.html")


@pytest.mark.parametrize("kind", ["tools", "articles"])
def test_tools_and_articles_have_the_same_finder(tab, kind):
    entries = catalog.read(catalog.ROOT / f"{kind}.yaml").data
    page = tab(f"generated/{kind}.html")
    assert sorted(shown(page)) == sorted(entry["id"] for entry in entries)
    value = entries[0]["kind"]
    page.locator(f"[name=kind][value={value}]").check()
    assert set(shown(page)) == {entry["id"] for entry in entries if entry["kind"] == value}
    assert f"#kind={value}" in page.url


def test_without_script_the_list_is_whole(tab):
    page = tab("generated/papers.html", java_script_enabled=False)
    assert page.locator(".entries > li").count() == len(papers())
    assert page.locator(".entries > li").first.is_visible()
    assert not page.locator(".finder").is_visible()  # no form that does nothing


# Every page


@pytest.mark.parametrize("path", PAGE_TYPES)
def test_page_fits_a_phone(tab, path):
    page = tab(path, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("h1").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGE_TYPES)
def test_axe_finds_nothing(tab, path, scheme):
    """axe-core comes with the package axe-playwright-python; rules for WCAG 2.0 to 2.2, levels A and AA."""
    axe = pytest.importorskip("axe_playwright_python")
    page = tab(path + VIEWS.get(Path(path).stem, ""), color_scheme=scheme)
    page.add_script_tag(content=(Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    # preload would read the style sheets again, which a page from disk may not
    found = page.evaluate("tags => axe.run(document, {runOnly: tags, preload: false})", tags)
    assert len(found["passes"]) > 5
    wrong = [(v["id"], v["nodes"][0]["html"][:200], len(v["nodes"])) for v in found["violations"]]
    assert wrong == []


class Links(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for key, value in attrs:
            if key in ("href", "src") and value:
                self.links.append(value)
            if key in ("id", "name") and value:
                self.ids.add(value)


def test_internal_links_and_anchors_resolve(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > len(papers())
    missing, checked = set(), 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":  # its addresses start at the server's root
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            checked += 1
            anchor = unquote(parts.fragment)
            known = anchor in pages[target].ids if target in pages else not anchor
            if not target.is_file() or (anchor and "=" not in anchor and not known):
                missing.add(f"{path.relative_to(site)}: {link}")
    assert sorted(missing)[:10] == []
    assert checked > 10_000


def test_first_load_is_light(site):
    """Under 300 KB compressed apart from the search index (design of the site: issue 7)."""
    import gzip

    page = site / "generated/papers.html"
    text = page.read_text(encoding="utf-8")
    files = [page] + [
        page.parent / link for link in re.findall(r'(?:src|href)="([^":]+\.(?:js|css|svg|png))(?=["?])', text)
    ]
    size = sum(len(gzip.compress(f.read_bytes())) for f in files if "search" not in f.name)
    assert 50_000 < size < 300_000


# Home


def test_chooser_shows_runs_that_none_beats_or_names_the_missing_one(tab):
    page = tab("index.html")
    runs = page.evaluate("window.measured.runs")
    assert len(runs) > 5
    ids = page.locator(".answer tbody td:last-child a").all_inner_texts()
    gains = {run["id"]: (run["psnr"][0], run["speed"][0], run["file"]) for run in runs}

    def beaten(one: tuple) -> bool:
        return any(all(a >= b for a, b in zip(two, one, strict=True)) and two != one for two in gains.values())

    assert sorted(ids) == sorted(key for key, gain in gains.items() if not beaten(gain))
    page.locator("[name=budget]").select_option("0")
    trained = {run["id"] for run in runs if run["seconds"] > 0}
    assert not trained & set(page.locator(".answer tbody td:last-child a").all_inner_texts())
    page.locator("[name=model]").select_option("flux.1-dev")
    assert "no published run of FLUX.1-dev" in page.locator(".answer").inner_text()
    again = tab("index.html" + page.url[page.url.index("#") :])
    assert again.locator("[name=model]").input_value() == "flux.1-dev"
