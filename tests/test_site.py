"""The built site in Chromium, opened from disk: finder, address, keys, phone, no script, no request outside."""

import gzip
import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from reference.bench import __main__ as bench
from scripts import catalog, export, render
from tests import perf_site

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
    "generated/quality.html",
    "generated/recovery.html",
    "generated/damage.html",
    "generated/criteria.html",
    "generated/lab.html",
    "generated/runs.html",
    "generated/glossary.html",
    "generated/methods/index.html",
    "generated/methods/obs.html",
    "generated/methods/structured.html",
    "guides/prune.html",
    "contribute.html",
    "api.html",
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
    settings = root / "mkdocs.yml"  # as deployed: with an address, to which no page may send anything by itself
    stated = settings.read_text(encoding="utf-8").replace('repo_url: ""', 'repo_url: "https://github.com/example/list"')
    settings.write_text(stated, encoding="utf-8")
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
    """Ids of the entries of the view, in order; what stands behind "Show all" is asked for."""
    more = page.locator(".more")
    if more.count() and more.is_visible():
        more.click()
    return page.eval_on_selector_all(".entries > li", "items => items.map(item => item.id)")


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
    page.wait_for_function("document.querySelectorAll('.entries > li').length > 1")
    assert page.locator("[name=family]:checked").count() == 0


def test_a_long_view_is_shown_in_two_steps(tab):
    page = tab("generated/papers.html")
    entries = page.locator(".entries > li")
    assert entries.count() == 60
    assert page.locator(".more").inner_text() == f"Show all {len(papers())}"
    page.locator(".more").click()
    assert entries.count() == len(papers())
    assert not page.locator(".more").is_visible()
    assert page.evaluate("document.activeElement.closest('li') === document.querySelector('.entries').children[60]")
    page.locator("[name=granularity][value=head]").check()
    assert entries.count() == min(60, sum("head" in paper["granularity"] for paper in papers()))
    last = shown(tab("generated/papers.html"))[-1]
    there = tab(f"generated/papers.html#{last}")  # a link to an entry that is far down
    assert there.locator(f"[id='{last}']").is_visible()


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
    # Rows of a table are written by one template: of hundreds, those at both ends will do.
    page.evaluate(
        "for (const t of document.querySelectorAll('tbody')) [...t.rows].slice(40, -40).forEach((r) => r.remove())"
    )
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
            if key == "srcset" and value:
                self.links += [part.split()[0] for part in value.split(",")]
            if key == "content" and ("property", "og:image") in attrs:
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
            if parts.scheme or parts.netloc:
                continue
            at_root = path.name == "404.html"  # it may stand at any depth, so its addresses start at the server's root
            assert link.startswith("/") == (at_root and bool(parts.path)), (path, link)
            place = site / unquote(parts.path).lstrip("/") if at_root else path.parent / unquote(parts.path)
            target = Path(os.path.normpath(place)) if parts.path else path
            checked += 1
            anchor = unquote(parts.fragment)
            known = anchor in pages[target].ids if target in pages else not anchor
            if not target.is_file() or (anchor and "=" not in anchor and not known):
                missing.add(f"{path.relative_to(site)}: {link}")
    assert sorted(missing)[:10] == []
    assert checked > 10_000


def test_first_load_is_light(site):
    """Under 300 KB compressed apart from the search index, at 500 papers as well."""
    page = site / "generated/papers.html"
    size, own = perf_site.first_load(page), len(gzip.compress(page.read_bytes()))
    assert 50_000 < size < 300_000
    assert size - own + own * 500 / len(papers()) < 300_000


def test_what_a_shared_link_shows(site):
    paper = (site / "generated/papers/obs-diff.html").read_text(encoding="utf-8")
    about = next(p for p in papers() if p["id"] == "obs-diff")
    head = dict(re.findall(r'<meta property="og:(\w+)" content="([^"]*)"', paper))
    assert html.unescape(head["title"]).startswith(about["title"])
    assert html.unescape(head["description"]) == " ".join(about["summary"].split())
    with Image.open(site / "generated/pictures/social-card.png") as card:
        assert card.size == (1200, 630)
        assert len(card.convert("RGB").getcolors()) > 20


@pytest.fixture
def server(site):
    """The site over HTTP, with its own page for what is missing, as Pages serves it."""

    class Handler(SimpleHTTPRequestHandler):
        def send_error(self, code, message=None, explain=None):
            body = (site / "404.html").read_bytes()
            self.send_response(code)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()


def test_a_lost_address_leads_on(browser, server):
    page = browser.new_page()
    failed = []
    page.on("response", lambda r: failed.append(r.url) if r.status >= 400 else None)
    lost = f"{server}/generated/papers/older/obs-diff.html"
    page.goto(lost)
    assert failed == [lost]  # its styles and scripts were found from any depth
    assert page.locator("h1").inner_text() == "Not here"
    page.get_by_role("link", name='Papers with "obs diff"').click()
    page.wait_for_url("**/generated/papers.html#q=obs**")
    page.wait_for_function("document.querySelector('.catalogue output')?.textContent.includes(' of ')")
    assert "obs-diff" in shown(page)
    page.close()


def test_equations_are_drawn_beside_their_code(tab):
    page = tab("generated/methods/obs.html", viewport={"width": 1300, "height": 900})
    for math in page.locator(".beside math").all():
        box = math.bounding_box()
        assert box["height"] > 15
        assert box["width"] > 60
    left, right = (page.locator(f".beside >> nth=0 >> css={part}").bounding_box() for part in (".equation", "pre"))
    assert left["x"] + left["width"] <= right["x"]
    assert abs(left["y"] - right["y"]) < 60


# Home


def gains(run: dict) -> tuple:
    return run["psnr"][0], run["speed"][0] if run["speed"] else 0, run["file"]


def test_chooser_shows_runs_that_none_beats(tab):
    page = tab("index.html")
    runs = page.evaluate("window.measured.runs")
    assert len(runs) > 5
    model, device = page.locator("[name=model]").input_value(), page.locator("[name=device]").input_value()
    here = [run for run in runs if (run["model"], run["device"]) == (model, device)]

    def beaten(one: dict) -> bool:
        others = [gains(run) for run in here if run["protocol"] == one["protocol"]]
        return any(all(a >= b for a, b in zip(two, gains(one), strict=True)) and two != gains(one) for two in others)

    assert sorted(answered(page)) == sorted(run["id"] for run in here if not beaten(run))
    tables = page.locator(".answer > .scroll table")
    assert all(tables.nth(i).locator("tbody tr").count() <= 8 for i in range(tables.count()))
    for extreme in ("closest to the dense pictures", "fastest", "smallest file"):  # is never folded
        assert page.locator(".answer > .scroll td", has_text=extreme).count()
        assert not page.locator(".answer details td", has_text=extreme).count()
    between = page.locator(".answer details")
    assert between.first.locator("summary").inner_text().startswith(f"{between.first.locator('tbody tr').count()} more")
    commands = page.locator(".answer pre").first.inner_text()
    assert "reference.bench --suite embedded --method" in commands
    assert "reference prune SOURCE --granularity" in commands
    trained = {run["id"] for run in here if run["seconds"] > 0}
    assert trained & set(answered(page))
    assert "reference recover FOLDER --data PICTURES --loss feature --dense SOURCE" in page.inner_text(".answer")
    assert "earned back after" in page.locator(".answer").inner_text()
    page.locator("[name=budget]").select_option("0")
    assert not trained & set(answered(page))


def test_commands_of_the_chooser_name_entries_that_their_suite_has(tab, capsys):
    """Whatever is asked: the runner lists the cells of each command that is shown, instead of refusing it."""
    page = tab("index.html")
    shown = set()
    for floor in ("0", "12", "15", "noise"):
        for budget in ("0", "60", "Infinity"):
            page.locator("[name=floor]").select_option(floor)
            page.locator("[name=budget]").select_option(budget)
            shown |= set(re.findall(r"reference\.bench (.*)", page.locator(".answer").text_content()))
    page.evaluate("window.measured.runs.forEach((run) => { run.psnr = [1, 0, 2]; })")  # none meets a limit now
    page.locator("[name=budget]").select_option("0")
    page.locator("[name=floor]").select_option("12")
    nearest = re.findall(r"reference\.bench (.*)", page.locator(".answer").inner_text())
    assert nearest[0].startswith("--suite quality --protocol quality --method ")
    assert {arguments.split(" --method")[0] for arguments in shown} >= {
        "--suite embedded",
        "--suite quality --protocol quality-recovery",
    }
    for arguments in sorted({*shown, *nearest}):
        assert bench.main([*shlex.split(arguments), "--list"]) == 0, arguments
        assert len(capsys.readouterr().out.splitlines()) > 1, arguments
    page.locator("[name=device]").select_option("NVIDIA H100")
    answer = page.locator(".answer").inner_text()
    assert "The embedded suite times on a CPU only." in answer
    assert "make bench" not in answer


def test_who_was_measured_is_said_beneath_the_answer(tab):
    page = tab("index.html")
    assert "million parameters" in page.locator(".answer > p").last.inner_text()


def answered(page) -> list[str]:
    """Ids of the runs in the chooser's answer."""
    links = page.locator(".answer tbody td:last-child a")
    return links.evaluate_all("links => links.map(link => link.hash.slice(1))")


def test_chooser_names_the_missing_run(tab, site):
    page = tab("index.html")
    page.locator("[name=floor]").select_option("noise")
    page.locator("[name=budget]").select_option("0")
    runs = page.evaluate("window.measured.runs")
    good = {run["id"] for run in runs if run["psnr"][0] >= run["noise"] and not run["seconds"]}
    assert set(answered(page)) <= good
    page.locator("[name=model]").select_option("flux.1-dev")
    page.locator("[name=device]").select_option("NVIDIA H100")
    answer = page.locator(".answer").inner_text()
    assert "No measured answer: there is no published run of FLUX.1-dev on NVIDIA H100" in answer
    assert "reference.bench --suite latency --model flux.1-dev" in answer
    assert "claimed by them, not measured by us" in answer
    for link in page.eval_on_selector_all(".answer a", "links => links.map(link => link.getAttribute('href'))"):
        assert (site / link.split("#")[0]).is_file(), link
    wanted = {p["id"] for p in papers() if p["family"] == "pruning" and "flux.1-dev" in p["targets"]}
    assert f"All {len(wanted)} papers on pruning it" in answer
    again = tab("index.html" + page.url[page.url.index("#") :])
    assert again.locator("[name=model]").input_value() == "flux.1-dev"
    assert again.locator("[name=device]").input_value() == "NVIDIA H100"
    page.get_by_role("link", name="papers on pruning it").click()
    page.wait_for_url("**/generated/papers.html#family=pruning&target=flux.1-dev")
    page.wait_for_function("document.querySelector('.catalogue output')?.textContent.includes('2 filters')")
    assert set(shown(page)) == wanted


@pytest.mark.parametrize(
    ("path", "table"), [("index.html", ".answer table"), ("generated/papers/obs-diff.html", "table")]
)
def test_a_row_is_a_card_on_a_phone(tab, path, table):
    """Nothing is moved sideways, and each value stands beside the name of its column, which does not cover the next."""
    page = tab(path, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cells = page.locator(f"{table}.stack td").all()
    assert len(cells) > 20
    names = {cell.evaluate("node => getComputedStyle(node, '::before').content").strip('"') for cell in cells}
    assert names == set(page.locator(f"{table}.stack th").all_text_contents())
    assert all(box["x"] + box["width"] <= 390 for box in (cell.bounding_box() for cell in cells))
    assert not any(cell.evaluate("node => node.scrollHeight > node.clientHeight") for cell in cells)


@pytest.mark.parametrize(
    "path",
    ["guides/prune.html", "guides/share.html", "guides/add-a-method.html", "guides/reproduce.html", "benchmarks.html"],
)
def test_code_of_the_guides_is_not_cut_off(tab, path):
    """Neither on a desktop, where no line is wider than its box, nor on a phone, where commands are wrapped."""
    page = tab(path, viewport={"width": 1300, "height": 900})
    assert page.locator("pre > code").count() > 1
    cut = "nodes => nodes.filter((node) => node.scrollWidth > node.clientWidth).map((node) => node.textContent)"
    assert page.locator("pre > code").evaluate_all(cut) == []
    assert tab(path, **PHONE).locator(".language-sh pre > code").evaluate_all(cut) == []
