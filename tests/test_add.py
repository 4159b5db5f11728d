"""Adding entries: what the services answer, what a person typed into a form, and what happens to the file."""

import datetime
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import requests
import yaml

from scripts import add, catalog, edit, forms, validate
from tests.test_catalog import ARTICLES, PAPERS, TOOLS, change

TODAY = datetime.date(2026, 11, 21)
HOSTILE = [
    'He said "no": {a: 1}, [b], & *c, !d, %e, @f, `g`',
    "- item\n- other",
    "one\r\ntwo\ttab\x0bvt",
    "colon: here # not a comment",
    "# comment",
    "'single' \"double\" \\back\\ \\n",
    "yes",
    "null",
    "2305.10924",
    "1e3",
    "---",
    "...",
    "Yes No",
    "True. False",
    "a b.",
    "? key",
    "| block",
    ">- folded",
    "nel\x85ls\u2028ps\u2029nbsp\xa0bom\ufeff",
    "\x02control\x7f\x9f",
    "Ünïcödé 漢字 Ελληνικά עברית 🙂 e\u0301",
    " leading and trailing ",
    "",
    "$\\alpha$ {\\LaTeX} 50% & #1 a_b ~ ^",
]


def atom(identifier: str = "2305.00002v3", **changes: str) -> str:
    """An answer of arXiv's export API in the layout of its manual: wrapped lines, feed title first, versioned id."""
    entry = {
        "title": "Gamma: Channel Removal\n  for Diffusion &amp; Flow Models",
        "names": "<author><name>Dia Example</name></author><author><name>Eli O'Example</name></author>",
        "more": "<arxiv:comment>12 pages, NeurIPS 2023</arxiv:comment><arxiv:doi>10.1000/gamma</arxiv:doi>",
    } | changes
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom">
  <title>arXiv Query: search_query=&amp;id_list=2305.00002</title>
  <id>https://arxiv.org/api/x</id>
  <entry>
    <id>http://arxiv.org/abs/{identifier}</id>
    <title>{entry["title"]}</title>
    <summary>We remove channels.</summary>
    <published>2023-05-18T17:59:38Z</published>
    {entry["names"]}
    {entry["more"]}
  </entry>
</feed>
"""


CROSSREF = {
    "status": "ok",
    "message": {
        "DOI": "10.1145/1234567",
        "title": ["Delta Pruning of <i>Diffusion</i> Models &amp; More"],
        "author": [{"given": "Fay", "family": "Example", "sequence": "first"}, {"name": "The Delta Team"}],
        "issued": {"date-parts": [[2024, 7]]},
        "container-title": ["2024 Conference on Example Vision (CEV)"],
        "type": "proceedings-article",
    },
}
GITHUB = {
    "name": "Epsilon",
    "full_name": "Example/Epsilon",
    "html_url": "https://github.com/Example/Epsilon",
    "description": "Prunes: everything",
    "homepage": "https://epsilon.example.org",
    "language": "Python",
    "license": {"spdx_id": "Apache-2.0"},
    "archived": False,
    "pushed_at": "2026-10-01T00:00:00Z",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small valid catalogue with the forms."""
    shutil.copytree(catalog.ROOT / "schemas", tmp_path / "schemas")
    shutil.copytree(catalog.ROOT / ".github" / "ISSUE_TEMPLATE", tmp_path / ".github" / "ISSUE_TEMPLATE")
    for name, text in (("papers", PAPERS), ("tools", TOOLS), ("articles", ARTICLES)):
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_keywords):
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)


def run(root: Path, source: str, text: str | bytes | None = None) -> int:
    """The command, with --from where a text is given."""
    if text is None:
        return add.main([source], root, TODAY)
    file = root / "answer.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return add.main([source, "--from", str(file)], root, TODAY)


def entry_of(root: Path, name: str, entry_id: str) -> dict:
    return next(entry for entry in catalog.read(root / f"{name}.yaml").data if entry["id"] == entry_id)


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("*.yaml")}


# Services


def test_arxiv(root, capsys):
    assert run(root, "arxiv:2305.00002v3", atom()) == 0
    entry = entry_of(root, "papers", "gamma")
    seen = {
        "title": "Gamma: Channel Removal for Diffusion & Flow Models",
        "authors": ["Dia Example", "Eli O'Example"],
        "authors_complete": True,
        "year": 2023,
        "month": 5,
        "arxiv": "2305.00002",
        "doi": "10.1000/gamma",
        "url": "https://arxiv.org/abs/2305.00002",
        "confidence": "low",
        "added": "2026-11-21",
    }
    assert {key: entry[key] for key in seen} == seen
    page = {"url": entry["url"], "what": "arXiv record: title, authors, date", "seen": "2026-11-21"}
    assert entry["evidence"] == [page]
    assert entry.keys().isdisjoint({"venue", "code", "checked", "claims", "limits"})  # nobody saw them
    said = capsys.readouterr().out
    assert "papers.yaml:54  gamma added" in said
    assert "arXiv's comment: 12 pages, NeurIPS 2023" in said
    assert "left out, add what you saw: openreview, venue, code" in said


def test_the_validator_names_what_is_left_to_do(root, capsys):
    run(root, "arxiv:2305.00002", atom())
    said = [line for line in capsys.readouterr().out.splitlines() if "it is not filled in" in line]
    problems = [str(problem) for problem in validate.check(root, TODAY)[0]]
    assert problems == said
    fields = ["family", "granularity[0]", "schedule[0]", "criterion[0]", "recovery[0]", "targets[0]", "summary"]
    assert [re.search(r"gamma\.(\S+):", problem)[1] for problem in problems] == fields
    lines = (root / "papers.yaml").read_text().split("\n")
    for problem in problems:
        number, col = map(int, problem.split("  ")[0].split(":")[1:])
        assert re.match(r"\[?\"FILL IN|\w+: \[?\"FILL IN", lines[number - 1][col - 1 :])
        assert len(problem.split("  fix: ")[1]) > 20
    assert "weight, N:M, neuron" in problems[1]


def test_filled_in_it_is_valid(root):
    run(root, "arxiv:2305.00002", atom())
    text = (root / "papers.yaml").read_text()
    filled = {"family": "caching", "granularity": "[]", "schedule": "[dynamic]", "criterion": "[]"}
    filled |= {"recovery": "[none]", "targets": "[sdxl]", "summary": "Removes channels of a diffusion model."}
    for key, value in filled.items():
        text = re.sub(rf'  {key}: \[?"FILL IN.*', f"  {key}: {value}", text)
    (root / "papers.yaml").write_text(text)
    assert validate.check(root, TODAY)[0] == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"Rate exceeded.", "too many requests"),
        (b"", "not XML"),
        (b"<html><p></html>", "not XML"),
        (b"\xff\xfe\x00", "not XML"),
        (atom("2305.99999"), "the answer is about 2305.99999"),
        ("<feed xmlns='http://www.w3.org/2005/Atom'/>", "no such paper"),
        (
            "<feed xmlns='http://www.w3.org/2005/Atom'><entry><id>http://arxiv.org/api/errors#x</id><title>Error</title>"
            "<summary>incorrect id format</summary></entry></feed>",
            "incorrect id format",
        ),
        (atom().replace("<feed", "<!DOCTYPE feed [<!ENTITY a 'b'>]><feed"), "has a DTD"),
        (
            atom(title="&lol;").replace("<feed", "<!DOCTYPE feed [<!ENTITY lol SYSTEM 'file:///etc/passwd'>]><feed"),
            "has a DTD",
        ),
        (
            atom().replace("UTF-8", "UTF-16").replace("<feed", "<!DOCTYPE feed><feed").encode("utf-16"),
            "has a DTD",
        ),
    ],
)
def test_bad_arxiv_answers(root, capsys, answer, message):
    before = snapshot(root)
    assert run(root, "arxiv:2305.00002", answer) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "  fix: " in error
    assert error.count("\n") == 1
    assert snapshot(root) == before


def test_authors_of_one_name(root):
    name = "<author><name>Wei Example</name></author>"
    run(root, "arxiv:2305.00002", atom(names=name * 2))
    entry = entry_of(root, "papers", "gamma")
    assert (entry["authors"], entry["authors_complete"]) == (["Wei Example"], False)


def test_doi(root):
    assert run(root, "https://doi.org/10.1145/1234567", json.dumps(CROSSREF)) == 0
    entry = entry_of(root, "papers", "delta-pruning-diffusion")
    assert entry["title"] == "Delta Pruning of Diffusion Models & More"
    assert entry["authors"] == ["Fay Example", "The Delta Team"]
    assert (entry["year"], entry["month"]) == (2024, 7)
    assert entry["venue"] == {"name": "CEV", "year": 2024, "status": "published"}
    assert entry["url"] == "https://doi.org/10.1145/1234567"
    assert len(validate.check(root, TODAY)[0]) == 7


def test_github(root):
    assert run(root, "https://github.com/example/epsilon.git", json.dumps(GITHUB)) == 0
    entry = entry_of(root, "tools", "epsilon")
    assert (entry["name"], entry["license"], entry["language"]) == ("Epsilon", "Apache-2.0", "Python")
    assert (entry["status"], entry["homepage"]) == ("active", "https://epsilon.example.org")
    open_fields = [str(p).split(": ")[0].split(".")[-1] for p in validate.check(root, TODAY)[0]]
    assert open_fields == ["kind", "granularity[0]", "supports_diffusion", "summary"]


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"archived": True}, "status", "archived"),
        ({"pushed_at": "2024-01-01T00:00:00Z"}, "status", "FILL IN: State of upkeep"),
        ({"license": None}, "license", "none stated"),
        ({"license": {"spdx_id": "NOASSERTION"}}, "license", "FILL IN: SPDX"),
        ({"homepage": "https://www.github.com/example/epsilon/"}, "homepage", "None"),
        ({"homepage": "http://localhost/"}, "homepage", "None"),
    ],
)
def test_github_facts(root, changes, field, expected):
    assert run(root, "https://github.com/example/epsilon", json.dumps(GITHUB | changes)) == 0
    assert str(entry_of(root, "tools", "epsilon").get(field)).startswith(expected)


@pytest.mark.parametrize("answer", ["", "[]", "{}", '{"message": []}', "[" * 100_000, '{"message": {"DOI": 7}}'])
@pytest.mark.parametrize("source", ["doi:10.1145/1234567", "https://github.com/example/epsilon"])
def test_bad_json_answers(root, capsys, source, answer):
    before = snapshot(root)
    assert run(root, source, answer) == 1
    assert "  fix: " in capsys.readouterr().err
    assert snapshot(root) == before


@pytest.mark.parametrize(
    "source", ["arxiv:2305.00002", "doi:10.1145/1234567", "https://github.com/example/epsilon", "arxiv:nonsense"]
)
def test_without_network_nothing_changes(root, capsys, source):
    before = snapshot(root)
    assert run(root, source) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no answer (ConnectionError)" in error or "is not an arXiv id" in error
    assert "  fix: " in error
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arxiv:2305.10924v2", ("arxiv", "2305.10924")),
        ("https://arxiv.org/pdf/2305.10924v2.pdf", ("arxiv", "2305.10924")),
        ("arXiv:math.GT/0309136", ("arxiv", "math.GT/0309136")),
        ("doi:10.48550/arXiv.2305.10924", ("arxiv", "2305.10924")),
        ("https://doi.org/10.1145/1.2", ("doi", "10.1145/1.2")),
        ("https://github.com/VainF/Diff-Pruning.git", ("github", "VainF/Diff-Pruning")),
    ],
)
def test_sources(text, expected):
    assert add.source_of(text) == expected


# Duplicates


@pytest.mark.parametrize(
    ("source", "text", "place"),
    [
        ("arxiv:2305.00001", atom("2305.00001v9", more=""), "papers.yaml:7:3  alpha-pruning.arxiv"),
        ("arxiv:2305.00002", atom(more="<arxiv:doi>10.1000/ALPHA</arxiv:doi>"), "papers.yaml:8:3  alpha-pruning.doi"),
        (
            "arxiv:2305.00002",
            atom(title="alpha pruning of Diffusion Módels."),
            "papers.yaml:2:3  alpha-pruning.title",
        ),
        ("paper", "title: Another Work\nid: beta-caching", "papers.yaml:36:3  beta-caching.id"),
        ("paper", "title: Another Work\nopenreview: AlphaForum", "papers.yaml:9:3  alpha-pruning.openreview"),
        (
            "paper",
            "title: Another Work\nurl: http://www.beta.example.org/paper/",
            "papers.yaml:41:3  beta-caching.url",
        ),
        ("tool", "name: Other\nurl: https://github.com/Example/alpha-tool.git", "tools.yaml:4:3  alpha-tool.url"),
        ("article", "title: a guide to ALPHA", "articles.yaml:2:3  alpha-guide.title"),
    ],
)
def test_duplicates_are_refused(root, capsys, source, text, place):
    before = snapshot(root)
    assert run(root, source, text) == 1
    error = capsys.readouterr().err
    assert f"{place}: it has this " in error
    assert "nothing was added" in error
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("https://arxiv.org/abs/2305.00001v2", "papers.yaml:7:3  alpha-pruning.arxiv"),
        ("doi:10.1000/ALPHA", "papers.yaml:8:3  alpha-pruning.doi"),
        ("https://github.com/example/alpha-tool", "tools.yaml:4:3  alpha-tool.url"),
    ],
)
def test_nobody_is_asked_for_what_is_there_already(root, capsys, source, place):
    assert run(root, source) == 1
    error = capsys.readouterr().err
    assert f"{place}: it has this " in error
    assert "no answer" not in error


def test_adding_twice_is_refused(root, capsys):
    assert run(root, "arxiv:2305.00002", atom()) == 0
    before = snapshot(root)
    assert run(root, "arxiv:2305.00002", atom()) == 1
    assert capsys.readouterr().err.count("gamma.") == 2  # arXiv id and address
    assert snapshot(root) == before


def test_a_similar_title_is_shown(root, capsys):
    assert run(root, "paper", "title: Alpha Pruning for Diffusion Models") == 0
    assert "a title almost like this one stands in papers.yaml:1  alpha-pruning" in capsys.readouterr().out


def test_ids_are_free(root):
    run(root, "paper", 'title: "Alpha-Tool: Something Else"\nyear: 2024')
    run(root, "tool", "name: beta caching\nurl: https://example.org/b")
    run(root, "paper", "title: 漢字の題名とその他")
    assert {"alpha-tool-2024", "paper"} < {e["id"] for e in catalog.read(root / "papers.yaml").data}
    assert "beta-caching-code" in {e["id"] for e in catalog.read(root / "tools.yaml").data}


# The file


@pytest.mark.parametrize(("entry_id", "index"), [("aaa", 0), ("alphb", 1), ("zzz", 2)])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("final", [True, False])
def test_every_other_byte_stays(root, entry_id, index, newline, final):
    head = "# modeline\n# About the file.\n\n"
    text = head + PAPERS.replace("- id: beta", "\n# about beta, trailing  \n- id: beta") + "\n# the end\n"
    text = text.replace("  year: 2023\n", "  year: 2023   # a remark\n")
    text = (text if final else text.rstrip("\n")).replace("\n", newline)
    path = root / "papers.yaml"
    path.write_bytes(text.encode())
    path.chmod(0o640)
    assert run(root, "paper", f"id: {entry_id}\ntitle: Something New\n") == 0
    after = path.read_bytes().decode()
    block = re.search(rf"- id: {entry_id}{newline}(  .*{newline})+({newline})?", after)[0]
    assert newline == "\n" or "\n" not in block.replace(newline, "")
    rest = after.replace(block, "", 1)
    assert rest == text or rest in (text + newline, text + newline * 2)  # a last line gets its end
    assert [entry["id"] for entry in catalog.read(path).data][index] == entry_id
    assert "# about beta, trailing  " + newline + "- id: beta" in after
    assert after.startswith(head.replace("\n", newline))
    assert path.stat().st_mode & 0o777 == 0o640
    assert not list(root.glob(".*.tmp"))


@pytest.mark.parametrize("text", ["[]\n", "", "# only a comment\n", "# head\n\n[]"])
def test_first_entry_of_a_file(root, text):
    (root / "articles.yaml").write_text(text)
    assert run(root, "article", "title: The First One\nurl: https://example.org/first") == 0
    assert [entry["id"] for entry in catalog.read(root / "articles.yaml").data] == ["first-one"]
    assert (root / "articles.yaml").read_text().startswith(text.replace("[]", "").rstrip("\n"))


def test_unusual_layouts_are_refused(root, capsys):
    data = catalog.read(root / "articles.yaml").data
    (root / "articles.yaml").write_text(json.dumps(data))  # JSON is YAML, but not the way the file is written
    before = snapshot(root)
    assert run(root, "article", "title: The First One\nid: zzz") == 1
    assert "cannot be changed safely" in capsys.readouterr().err
    assert snapshot(root) == before


def test_a_file_that_cannot_be_read_is_left_alone(root, capsys):
    change(root, "papers.yaml", 'title: "Beta:', "title: Beta:")
    before = snapshot(root)
    assert run(root, "arxiv:2305.00002", atom()) == 1
    assert "papers.yaml:37:14  beta-caching: this cannot be read" in capsys.readouterr().err
    assert snapshot(root) == before


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_survives_yaml(tmp_path, text):
    entry = {"id": "a", "title": text, "list": [text, text], "map": {"a": text, text: 1}, "maps": [{"x": text}]}
    path = tmp_path / "x.yaml"
    path.write_bytes(("\n".join(edit.dump(entry)) + "\n").encode("utf-8"))
    document = catalog.read(path)
    assert (document.data, document.problems) == ([entry], [])
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == [entry]  # and readers of YAML 1.1 agree


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_titles_are_added(root, text):
    title = f"Zeta {text} end"
    fields = {"id": "zeta", "title": title, "authors": [title], "authors_complete": True, "summary": title}
    assert run(root, "paper", edit.flow(fields)) == 0
    entry = entry_of(root, "papers", "zeta")
    expected = "".join(c for c in " ".join(title.split()) if c >= " " and not "\x7f" <= c <= "\x9f")
    assert entry["title"] == entry["summary"] == entry["authors"][0] == expected
    assert len(catalog.read(root / "papers.yaml").data) == 3


# Fields and forms


def body(form: str, told: dict[str, str]) -> str:
    """The body that GitHub makes of a form: every question as a heading, in order."""
    assert told.keys() <= {field for field, _ in forms.questions(form)}
    parts = [f"### {label}\n\n{told.get(field, '_No response_')}" for field, label in forms.questions(form)]
    return "\r\n\r\n".join(parts)


PAPER_FORM = {
    "title": 'Eta: "Pruning" - of Models',
    "authors": "Gil Example\nHal Example\nand others",
    "arxiv": "https://arxiv.org/abs/2306.00003v2",
    "venue": "NeurIPS 2023",
    "venue_status": "published",
    "code": "https://github.com/example/eta",
    "code_by": "the authors",
    "family": "pruning",
    "granularity": "N:M, head",
    "schedule": "one-shot",
    "criterion": "magnitude",
    "recovery": "nothing (no training after removal)",
    "targets": "sdxl, dit-xl-2-256",
    "summary": "Removes heads and patterns of weights\nby magnitude, without recovery.",
    "evidence": "https://arxiv.org/abs/2306.00003 title, authors\n- <https://github.com/example/eta> README",
    "about_you": "an author of this work",
}


def test_paper_form(root):
    text = body("paper", PAPER_FORM)
    form, fields = forms.from_issue_form(text)
    assert form == "paper"
    assert fields["authors"] == ["Gil Example", "Hal Example"]
    assert fields["authors_complete"] is False
    assert fields["recovery"] == ["none"]
    assert "about_you" not in fields
    assert run(root, "paper", text) == 0
    assert validate.check(root, TODAY)[0] == []  # a form answered in full needs nothing else
    entry = entry_of(root, "papers", "eta")
    assert (entry["arxiv"], entry["year"], entry["month"]) == ("2306.00003", 2023, 6)
    assert entry["venue"] == {"name": "NeurIPS", "year": 2023, "status": "published"}
    assert entry["code"] == {"url": "https://github.com/example/eta", "official": True}
    assert entry["granularity"] == ["N:M", "head"]
    assert entry["summary"] == "Removes heads and patterns of weights by magnitude, without recovery."
    assert [page["url"] for page in entry["evidence"]][1] == "https://github.com/example/eta"
    assert {page["seen"] for page in entry["evidence"]} == {"2026-11-21"}


def test_tool_and_article_forms(root):
    tool = {
        "name": "Theta",
        "url": "https://github.com/example/theta",
        "kind": "library",
        "license": "MIT",
        "language": "Python",
        "package": "theta",
        "granularity": "weight",
        "supports_diffusion": "yes",
        "status": "active",
        "works_with": "alpha-pruning",
        "summary": "Removes weights of any module.",
        "evidence": "https://github.com/example/theta README",
    }
    article = {
        "title": "On Theta",  # "theta" is the tool's id
        "authors": "Ida Example",
        "url": "https://example.org/theta",
        "kind": "blog",
        "published": "2026-05",
        "language": "en",
        "topics": "unstructured, hardware",
        "about": "theta, alpha-pruning",
        "summary": "Measures what Theta promises.",
        "evidence": "https://example.org/theta the text",
    }
    assert run(root, "tool", body("tool", tool)) == 0
    assert run(root, "article", body("article", article)) == 0
    assert validate.check(root, TODAY)[0] == []
    assert entry_of(root, "tools", "theta")["package"] == {"pypi": "theta"}
    assert entry_of(root, "articles", "theta-article")["topics"] == ["unstructured", "hardware"]


def test_an_answer_may_look_like_a_heading(root):
    told = PAPER_FORM | {"limits": "### Title of the paper\n\nfake\n\n### Family\n\ncaching"}
    fields = forms.from_issue_form(body("paper", told))[1]
    assert fields["title"] == PAPER_FORM["title"]
    assert fields["family"] == "pruning"
    assert fields["limits"].startswith("### Title of the paper")


CORRECTION = {
    "file": "papers",
    "id": "alpha-pruning",
    "field": "granularity",
    "value": "channel, head",
    "evidence": "https://alpha.example.org/ Table 2",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["channel", "head"]),
        ({"field": "title", "value": "Alpha: a new title # really"}, "Alpha: a new title # really"),
        ({"field": "year", "value": "2022"}, 2022),
        ({"field": "authors_complete", "value": "false"}, False),
        ({"field": "authors", "value": "Ada Example\nBen Example, Jr."}, ["Ada Example", "Ben Example, Jr."]),
        ({"field": "limits", "value": "Only one model."}, "Only one model."),
        ({"field": "summary", "value": "Removes channels, and says so."}, "Removes channels, and says so."),
        ({"field": "doi", "value": "10.1000/other"}, "10.1000/other"),
        ({"field": "arxiv", "value": "2305.10920"}, "2305.10920"),
        (
            {"field": "venue", "value": '{"name": "ICML", "year": 2024, "status": "accepted"}'},
            {"name": "ICML", "year": 2024, "status": "accepted"},
        ),
    ],
)
def test_correction(root, changes, expected):
    told = CORRECTION | changes
    before = Counter((root / "papers.yaml").read_text().split("\n"))
    assert run(root, "correction", body("correction", told)) == 0
    entry = entry_of(root, "papers", "alpha-pruning")
    assert entry[told["field"]] == expected
    page = {"url": "https://alpha.example.org/", "what": "Table 2", "seen": "2026-11-21"}
    assert entry["evidence"][1:] == [page]
    after = Counter((root / "papers.yaml").read_text().split("\n"))
    assert (after - before).total() == 2  # the field and the page that shows it
    assert (before - after).total() == (told["field"] != "limits")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "nobody"}, "no entry 'nobody'"),
        ({"field": "id"}, "not a field that a form can correct"),
        ({"field": "colour"}, "not a field that a form can correct"),
        ({"file": "../papers"}, "there is no file '../papers'"),
        ({"field": "year", "value": "last year"}, "is not of type integer"),
        ({"evidence": "trust me"}, "is not an address and what was seen there"),
    ],
)
def test_bad_corrections(root, capsys, changes, message):
    before = snapshot(root)
    assert run(root, "correction", body("correction", CORRECTION | changes)) == 1
    assert message in capsys.readouterr().err
    assert snapshot(root) == before


RUN = {
    "schema": "result/1",
    "run_id": "20261121T191500Z-3f9a1c",
    "created": "2026-11-21T19:15:00Z",
    "status": "failed",
    "error": "out of memory",
    "protocol": {"id": "embedded", "sha256": "0" * 64},
    "subject": {
        "model": "openmoji-mmdit",
        "weights_sha256": "0" * 64,
        "entry": "head",
        "is_baseline": False,
        "baseline_run": None,
    },
    "config": {"sampler": {}, "noise_seeds": [0], "dtype": "float32"},
    "achieved": None,
    "quality": [],
    "speed": [],
    "environment": {"device": "cpu", "cpu": "x", "torch": "2", "diffusers": "0", "python": "3"},
    "code": {"commit": None, "dirty": False, "command": [], "wall_seconds": 1},
    "artifacts": [],
}


def test_result(root, capsys):
    told = {"suite": "embedded", "device": "some-cpu", "run": f"```json\n{json.dumps(RUN)}\n```"}
    assert run(root, "result", body("result", told)) == 0
    path = root / "results" / "embedded" / "some-cpu" / "20261121T191500Z-3f9a1c.json"
    assert json.loads(path.read_text()) == RUN
    assert run(root, "result", body("result", told)) == 1
    assert "runs are never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "../../x"}, "suite and device name folders"),
        ({"run": "no json"}, "not one JSON object"),
        ({"run": json.dumps(RUN | {"run_id": "../../x"})}, "the result file, run_id"),
        ({"run": json.dumps(RUN | {"extra": 1})}, "the result file, (file)"),
    ],
)
def test_bad_results(root, capsys, changes, message):
    told = {"suite": "embedded", "device": "some-cpu", "run": json.dumps(RUN)} | changes
    assert run(root, "result", body("result", told)) == 1
    assert message in capsys.readouterr().err
    assert not (root / "results").exists()


@pytest.mark.parametrize(
    ("source", "text", "message"),
    [
        ("paper", None, "add --from FILE"),
        ("something", None, "'something' is not known here"),
        ("https://example.org/x", None, "is not known here"),
        ("paper", "### Hello\n\nyou", "not the body of an issue of one of our forms"),
        ("tool", body("paper", PAPER_FORM), "this is the form 'paper', not 'tool'"),
        ("paper", "just text", "does not hold fields"),
        ("paper", "a: [", "this cannot be read"),
        ("correction", "a: 1", "does not hold the body of an issue"),
        ("paper", "id: Not An Id\ntitle: Something", "is no id"),
        ("paper", "id: 5\ntitle: Something", "is no id"),
        ("paper", body("paper", PAPER_FORM | {"venue": "NeurIPS"}), "has no year"),
    ],
)
def test_bad_input_is_one_line(root, capsys, source, text, message):
    before = snapshot(root)
    assert run(root, source, text) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "  fix: " in error
    assert error.count("\n") == 1
    assert snapshot(root) == before | {"answer.txt": b""} or snapshot(root) == before


def test_missing_file(root, capsys):
    assert add.main(["paper", "--from", str(root / "nothing")], root, TODAY) == 1
    assert "No such file" in capsys.readouterr().err


def test_arxiv_without_quotes_is_left_to_the_validator(root):
    assert run(root, "paper", "title: Something New\narxiv: 2305.10924") == 0
    assert any("put it in quotes" in str(problem) for problem in validate.check(root, TODAY)[0])


VOCABULARY_OF = {
    "paper": {
        "venue_status": "venue_status",
        "family": "family",
        "granularity": "granularity",
        "schedule": "schedule",
        "criterion": "criterion",
        "recovery": "recovery",
    },
    "tool": {
        "kind": "tool_kind",
        "granularity": "granularity",
        "supports_diffusion": "diffusion_support",
        "status": "tool_status",
    },
    "article": {"kind": "article_kind", "topics": "topic"},
}


@pytest.mark.parametrize("form", forms.FORMS)
def test_forms_agree_with_schema_and_vocabulary(form):
    """What GitHub demands of a form, and that its choices are those of schemas/vocab.yaml."""
    template = catalog.read(catalog.ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml")
    assert template.problems == []
    questions = [part for part in template.data["body"] if "id" in part]
    labels = [part["attributes"]["label"] for part in questions]
    assert len({*labels}) == len(labels)
    vocab = catalog.vocabulary().data
    for part in questions:
        options = part["attributes"].get("options", [])
        assert all(isinstance(o, str) and o.lower() != "none" and "," not in o for o in options)
        if name := VOCABULARY_OF.get(form, {}).get(part["id"]):
            told = ["none" if option.startswith(forms.NOTHING) else option for option in options]
            assert told == list(vocab[name])
    if form in add.FILE_OF:
        schema = json.loads((catalog.ROOT / "schemas" / f"{add.FILE_OF[form]}.schema.json").read_text())["items"]
        ids = {part["id"] for part in questions}
        assert ids - {*schema["properties"]} <= {"about_you", "code_by", "venue_status"}
        assert {*schema["required"]} - ids <= {"id", "authors_complete", "confidence", "added"}


def test_workflows_run_no_strangers_code_with_rights():
    for path in (catalog.ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text()
        workflow = catalog.read(path).data
        assert "pull_request_target" not in text.replace("never `pull_request_target`", "")
        assert "permissions" in workflow, path.name
        if "pull_request" in workflow["on"]:
            assert workflow["permissions"] == {"contents": "read"}
            assert "secrets." not in text
            assert all("permissions" not in job for job in workflow["jobs"].values())
        uses = re.findall(r"uses: (\S+)", text)
        assert uses
        assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", use) for use in uses)
        assert text.count("uses: actions/checkout") == text.count("persist-credentials: false")
