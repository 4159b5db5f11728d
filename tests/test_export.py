"""Exports: what other programs read out of them is what the catalogue says."""

import cProfile
import csv
import datetime
import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import catalog, export, lists, paper_page, render, validate
from tests.scale import TODAY, catalogue
from tests.test_add import HOSTILE
from tests.test_catalog import ARTICLES, PAPERS, TOOLS, change

NAMES = [
    "articles.csv",
    "articles.json",
    "feed.json",
    "feed.xml",
    "llms.txt",
    "papers.bib",
    "papers.csv",
    "papers.json",
]
NAMES += ["tools.csv", "tools.json"]
A = "{http://www.w3.org/2005/Atom}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small valid catalogue."""
    folder = tmp_path / "catalogue"
    shutil.copytree(catalog.ROOT / "schemas", folder / "schemas")
    for name, text in (("papers", PAPERS), ("tools", TOOLS), ("articles", ARTICLES)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "mkdocs.yml").write_text('site_url: ""\nrepo_url: ""\n', encoding="utf-8")
    return folder


def exported(root: Path) -> dict[str, str]:
    """Files of an export by name."""
    assert export.main([str(root / "out")], root) == 0
    return {path.name: path.read_bytes().decode("utf-8") for path in sorted((root / "out").iterdir())}


def paper(**changes: object) -> dict:
    """A paper as the catalogue holds it."""
    base = {"id": "zeta", "title": "Zeta", "authors": ["Ada Example"], "authors_complete": True, "year": 2024}
    return base | {"url": "https://example.org/zeta", "summary": "x" * 20, "added": "2026-11-20"} | changes


def parsed(papers: list[dict]) -> list[dict[str, str]]:
    """papers.bib as a BibTeX parser reads it, fields as written."""
    import bibtexparser

    library = bibtexparser.parse_string(export.bibtex(papers))
    assert library.failed_blocks == []
    assert len(library.entries) == len(papers)
    return [
        {"ENTRYTYPE": entry.entry_type, "ID": entry.key} | {f.key: str(f.value) for f in entry.fields}
        for entry in library.entries
    ]


def untex(text: str) -> str:
    """Text that TeX would print, by a decoder of its own; it lacks some names that LaTeX has in its kernel."""
    from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db

    names = {"textless": "<", "textgreater": ">", "textbar": "|", "textbraceleft": "{", "textbraceright": "}"}
    names |= {"textasciicircum": "^", "textquotedbl": '"'}
    context = get_default_latex_context_db()
    context.add_context_category("kernel", macros=[MacroTextSpec(k, v) for k, v in names.items()], prepend=True)
    return LatexNodes2Text(latex_context=context, strict_latex_spaces=True).latex_to_text(text)


# BibTeX


def test_bibtex_of_a_published_paper(root):
    alpha, beta = parsed(catalog.read(root / "papers.yaml").data)
    assert alpha == {
        "ENTRYTYPE": "inproceedings",
        "ID": "alpha-pruning",
        "title": "{Alpha Pruning of Diffusion Models}",
        "author": "Ada Example and Ben Example",
        "booktitle": "NeurIPS",
        "year": "2023",
        "eprint": "2305.00001",
        "archiveprefix": "arXiv",
        "doi": "10.1000/alpha",
        "url": "https://arxiv.org/abs/2305.00001",
    }
    assert beta["author"] == "Cid Example and others"  # authors_complete is false
    assert beta["ENTRYTYPE"] == "misc"


@pytest.mark.parametrize(
    ("venue", "kind", "where"),
    [
        ({"name": "TMLR", "year": 2025, "status": "published"}, "article", ("journal", "TMLR", "2025")),
        ({"name": "ICLR", "year": 2025, "status": "accepted"}, "inproceedings", ("booktitle", "ICLR", "2025")),
        ({"name": "arXiv", "year": 2024, "status": "preprint"}, "misc", ("month", "may", "2024")),
        ({"name": "R & D", "year": 2025, "status": "withdrawn"}, "inproceedings", ("booktitle", "R \\& D", "2025")),
    ],
)
def test_bibtex_venues(venue, kind, where):
    entry = parsed([paper(venue=venue, month=5)])[0]
    key, text, year = where
    assert (entry["ENTRYTYPE"], entry[key], entry["year"]) == (kind, text, year)
    notes = {"accepted": "To appear", "withdrawn": "Withdrawn"}
    assert entry.get("note") == notes.get(venue["status"])
    assert "  month = may,\n" in export.bibtex([paper(month=5)])  # a macro of the style, not a text


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.strip()])
def test_hostile_text_survives_bibtex(text):
    entries = [paper(id=f"e{i}", title=text, authors=[text, "Ben Example"]) for i in range(2)]
    expected = export.line(text)
    for entry in parsed(entries):
        title, author = entry["title"], entry["author"]
        assert title[0] == "{"
        assert title[-1] == "}"
        assert untex(title[1:-1]) == expected
        assert author.count(" and ") == 1 + expected.count(" and ")
        assert untex(author.rsplit(" and ", 1)[0]).removeprefix("{").removesuffix("}") == expected


@pytest.mark.parametrize(
    "text", ["a -- b --- c", "''quoted'' ``so''", "{", "}", "}}{{", "\\", "\\\\}", "%", "$", "a{b"]
)
def test_tex_specials_survive_bibtex(text):
    entries = parsed([paper(title=text), paper(id="after")])
    assert untex(entries[0]["title"][1:-1]) == text
    assert entries[1]["ID"] == "after"


def test_names_that_bibtex_would_take_apart():
    names = ["Ada Example", "Example, Jr.", "Research and Development", "others", "Ludwig van Example", "AND more"]
    entry = parsed([paper(authors=names)])[0]
    assert entry["author"].count("{") == 4
    import bibtexparser
    from bibtexparser import middlewares

    stack = [middlewares.RemoveEnclosingMiddleware(), middlewares.SeparateCoAuthors()]
    library = bibtexparser.parse_string(export.bibtex([paper(authors=names)]), parse_stack=stack)
    split = [name.removeprefix("{").removesuffix("}") for name in library.entries[0]["author"]]
    assert split == names


def test_addresses_in_bibtex():
    entry = parsed([paper(url="https://example.org/a_b?c=%20&d={x}#e~f", doi="10.1000/a_{b}%c")])[0]
    assert entry["url"] == "https://example.org/a_b?c=%20&d=%7Bx%7D#e~f"
    assert entry["doi"] == "10.1000/a_%7Bb%7D%c"


def test_shipped_papers_round_trip():
    papers = catalog.load()["papers"].data
    entries = parsed(papers)
    assert [entry["ID"] for entry in entries] == [p["id"] for p in papers]
    assert [untex(entry["title"][1:-1]) for entry in entries] == [export.line(p["title"]) for p in papers]
    for entry, p in zip(entries, papers, strict=True):
        assert entry["author"].endswith(" and others") is not p["authors_complete"]
        assert entry.get("eprint") == p.get("arxiv")


# JSON, CSV


def test_json_is_the_catalogue(root):
    files = exported(root)
    assert sorted(files) == NAMES
    for name in catalog.FILES:
        assert json.loads(files[f"{name}.json"]) == catalog.read(root / f"{name}.yaml").data


def test_csv(root):
    change(root, "papers.yaml", '"Beta: Caching in Diffusion Models"', '\'=HYPERLINK("x"), "y"\'')
    change(root, "papers.yaml", "[Cid Example]", '["-Cid", "+1"]')
    rows = list(csv.DictReader(io.StringIO(exported(root)["papers.csv"], newline="")))
    assert len(rows) == 2
    alpha, beta = rows
    assert alpha["authors"] == "Ada Example; Ben Example"
    assert (alpha["venue.name"], alpha["venue.year"], alpha["code.official"]) == ("NeurIPS", "2023", "true")
    assert json.loads(alpha["claims"])[0]["pruned"] == 5.29
    assert beta["title"] == '\'=HYPERLINK("x"), "y"'  # a spreadsheet shows it and does not run it
    assert beta["authors"] == "'-Cid; +1"
    assert (beta["venue.name"], beta["claims"]) == ("", "")
    assert list(alpha)[:4] == ["id", "title", "authors", "authors_complete"]


# Feeds


def test_feeds_without_a_site(root):
    files = exported(root)
    feed, atom = json.loads(files["feed.json"]), ElementTree.fromstring(files["feed.xml"])
    assert feed["version"] == "https://jsonfeed.org/version/1.1"
    assert "feed_url" not in feed
    assert len(feed["items"]) == 4
    assert all(item["id"].startswith("urn:uuid:") for item in feed["items"])
    assert feed["items"][0]["url"] == "https://arxiv.org/abs/2305.00001"
    assert [e.findtext(f"{A}id") for e in atom.findall(f"{A}entry")] == [item["id"] for item in feed["items"]]
    for part in (atom, *atom.findall(f"{A}entry")):  # what RFC 4287 demands of feed and entry
        assert all(len(part.findall(f"{A}{tag}")) == 1 for tag in ("id", "title", "updated"))
        datetime.datetime.fromisoformat(part.findtext(f"{A}updated"))
    assert atom.find(f"{A}author/{A}name") is not None
    assert all(e.find(f"{A}link[@rel='alternate']") is not None for e in atom.findall(f"{A}entry"))


def test_ids_of_feeds_stay(root):
    before = [item["id"] for item in json.loads(exported(root)["feed.json"])["items"]]
    change(root, "mkdocs.yml", 'site_url: ""', 'site_url: "https://example.org/list/"')
    change(root, "papers.yaml", "Alpha Pruning of", "Alpha Pruning in")
    files = exported(root)
    feed = json.loads(files["feed.json"])
    assert [item["id"] for item in feed["items"]] == before
    assert len({*before}) == 4
    assert feed["feed_url"] == "https://example.org/list/generated/data/feed.json"
    assert feed["items"][0]["url"] == "https://example.org/list/generated/papers/alpha-pruning.html"
    assert feed["items"][0]["external_url"] == "https://arxiv.org/abs/2305.00001"
    link = ElementTree.fromstring(files["feed.xml"]).find(f"{A}link[@rel='self']")
    assert link.get("href") == "https://example.org/list/generated/data/feed.xml"
    assert "(https://example.org/list/generated/data/papers.json)" in files["llms.txt"]


def test_newest_first_and_not_endless(root):
    change(
        root, "articles.yaml", "added: 2026-11-20\n  checked: 2026-11-20", "added: 2026-11-21\n  checked: 2026-11-21"
    )
    feed = json.loads(exported(root)["feed.json"])
    assert feed["items"][0]["title"] == "A Guide to Alpha"
    assert feed["items"][0]["date_published"] == "2026-11-21T00:00:00Z"
    papers = [paper(id=f"p{i}", family="nas") for i in range(300)]
    assert len(export.additions({"papers": papers, "tools": [], "articles": []}, "")) == export.FEED_LENGTH == 100
    empty = ElementTree.fromstring(export.atom_feed([], ""))
    assert empty.findtext(f"{A}updated") == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("text", [*filter(None, HOSTILE), "<script>alert(1)</script> & ]]>", "\ufffe\uffff\x00"])
def test_hostile_text_in_feeds_and_llms(text):
    data = {"papers": [paper(title=text, summary=text, authors=[text], family="nas")], "tools": [], "articles": []}
    items = export.additions(data, "")
    assert json.loads(export.json_feed(items, ""))["items"][0]["title"] == text
    title = ElementTree.fromstring(export.atom_feed(items, "")).findtext(f"{A}entry/{A}title") or ""
    assert title.split() == export.xml_text(text).split()
    vocab = catalog.vocabulary().data
    plain = export.llms(data | {"papers": [paper(family="nas")]}, vocab, "")
    assert export.llms(data, vocab, "").count("\n") == plain.count("\n")


def test_llms(root):
    text = exported(root)["llms.txt"]
    assert text.startswith("# Awesome Diffusion Pruning\n\n> ")
    assert "- [papers.json](papers.json): 2 papers, 1 claims; every field" in text
    assert text.count("\n- [") == 5 + 4
    assert text.index("## Papers: Pruning") < text.index("## Papers: Caching") < text.index("## Tools")


# Files


def test_the_same_bytes_again(root):
    first = exported(root)
    (root / "out" / "mine.txt").write_text("mine")
    assert exported(root) == first | {"mine.txt": "mine"}
    assert not [path for path in (root / "out").iterdir() if path.name.startswith(".")]


def test_an_invalid_catalogue_is_not_exported(root, capsys):
    change(root, "papers.yaml", "month: 5", "month: 6")
    assert export.main([str(root / "out")], root) == 1
    assert "papers.yaml:6:3  alpha-pruning.month" in capsys.readouterr().err
    assert not (root / "out").exists()


def test_nothing_half_is_left(root, monkeypatch):
    first = exported(root)
    monkeypatch.setattr(export, "llms", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.main([str(root / "out")], root)
    assert {
        path.name: path.read_text(encoding="utf-8") for path in (root / "out").iterdir() if path.suffix != ".csv"
    } == {name: text for name, text in first.items() if not name.endswith(".csv")}


def test_a_folder_that_cannot_be_written(root, capsys):
    (root / "file").write_text("")
    assert export.main([str(root / "file")], root) == 1
    assert "  fix: " in capsys.readouterr().err


# Size


def test_work_grows_linearly(tmp_path):
    """Calls of functions, which are the same on every machine; `python -m tests.scale` prints the time."""

    def calls(size: int) -> int:
        root = catalogue(tmp_path / str(size), size)
        vocab = catalog.vocabulary(root).data
        profile = cProfile.Profile(builtins=False)
        problems, documents = profile.runcall(validate.check, root, TODAY)
        assert problems == []
        data = {name: document.data for name, document in documents.items()}
        assert sum(map(len, data.values())) == size
        profile.runcall(export.exports, data, root)
        profile.runcall(render.readme_papers, data["papers"], vocab)
        known = {name: {entry["id"] for entry in entries} for name, entries in data.items()}
        measured = dict.fromkeys(known["papers"], "no")
        profile.runcall(lists.page, "papers", documents["papers"], vocab, {}, "", known, measured)
        profile.runcall(paper_page.pages, documents["papers"], data, vocab, {}, "", [])
        return sum(entry.callcount for entry in profile.getstats())

    small, large = calls(500), calls(5000)
    assert small > 10_000
    assert large < 11 * small
