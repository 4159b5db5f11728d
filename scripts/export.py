"""Write the catalogue for other programs: `python -m scripts.export FOLDER`.

papers, tools and articles as .json (the entries as they are) and .csv (for spreadsheets), papers.bib, feed.json and
feed.xml (the newest entries), llms.txt. The same catalogue gives the same bytes. Everything is written to a temporary
folder first and then moved; other files in FOLDER stay.
"""

import argparse
import csv
import io
import json
import os
import re
import sys
import tempfile
import unicodedata
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scripts import catalog, validate

NAME = "Awesome Diffusion Pruning"
ABOUT = "Papers, tools and articles on pruning diffusion models: a catalogue with evidence for every entry."
LICENCE = "https://creativecommons.org/publicdomain/zero/1.0/"
PUBLISHED = "generated/data"  # where the site keeps what this program writes
FEED_LENGTH = 100
FEEDS = {"feed.xml": "awesome-diffusion-pruning", "verdicts.xml": "awesome-diffusion-pruning/verdicts"}
ATOM = "http://www.w3.org/2005/Atom"


# BibTeX

# Braces have no escape that BibTeX's own count of braces would skip, hence their names.
TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{c: f"\\{c}" for c in "#$%&_"},
}
MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()  # noqa: SIM905 - macros of every style
# Venues of the catalogue that are journals; every other one is a conference or workshop.
JOURNALS = {"IJCV", "JMLR", "TCSVT", "TIP", "TMLR", "TNNLS", "TOG", "TPAMI"}


def line(text: str) -> str:
    """Text on one line, without control characters."""
    return "".join(c for c in " ".join(text.split()) if unicodedata.category(c) != "Cc")


def tex(text: str) -> str:
    """Text of one line that TeX prints as it is; letters stay Unicode."""
    escaped = "".join(TEX.get(c, c) for c in line(text))
    return re.sub(r"([-',])(?=\1)", r"\1{}", escaped)  # two of these would join to a dash or a quote


def raw(text: str) -> str:
    """An address or DOI, which styles print without reading TeX in it."""
    return re.sub(r"[{}\\\s]", lambda m: f"%{ord(m[0]):02X}", text)


def bib_name(name: str) -> str:
    """One author; braces around a name that BibTeX would take apart at a comma or an 'and'."""
    escaped = tex(name)
    return f"{{{escaped}}}" if "," in name or re.search(r"\b(and|others)\b", name, re.I) else escaped


def bib_entry(paper: dict[str, Any]) -> str:
    """One paper. A title has two pairs of braces: no rule tells a model called Wan from the capital of a headline."""
    venue = paper.get("venue")
    reviewed = venue is not None and venue["status"] != "preprint" and venue["name"] != "arXiv"
    journal = reviewed and venue["name"] in JOURNALS
    fields = {
        "title": f"{{{tex(paper['title'])}}}",
        "author": " and ".join(map(bib_name, paper["authors"])) + ("" if paper["authors_complete"] else " and others"),
    }
    if reviewed:
        fields["journal" if journal else "booktitle"] = tex(venue["name"])
    fields["year"] = str(venue["year"] if reviewed else paper["year"])
    if "month" in paper and not reviewed:
        fields["month"] = MONTHS[paper["month"] - 1]
    if "arxiv" in paper:
        fields |= {"eprint": paper["arxiv"], "archiveprefix": "arXiv"}
    if "doi" in paper:
        fields["doi"] = raw(paper["doi"])
    fields["url"] = raw(paper["url"])
    if venue and venue["status"] in ("accepted", "withdrawn"):
        fields["note"] = "To appear" if venue["status"] == "accepted" else "Withdrawn"
    kind = "article" if journal else "inproceedings" if reviewed else "misc"
    lines = [f"  {key} = {value if key == 'month' else f'{{{value}}}'}," for key, value in fields.items()]
    return "\n".join([f"@{kind}{{{paper['id']},", *lines, "}"])


def bibtex(papers: list[dict[str, Any]]) -> str:
    """papers.bib, in UTF-8."""
    return "\n\n".join(map(bib_entry, papers)) + "\n"


# Tables


def cell(value: Any) -> str:
    """A value in a spreadsheet: lists of words joined by '; ', everything deeper as JSON."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = "; ".join(value)
    if isinstance(value, str):
        # A spreadsheet would run what begins like a formula, and catalogues are opened in them.
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return json.dumps(value, ensure_ascii=False)


def table(entries: list[dict[str, Any]], keys: Iterable[str]) -> str:
    """CSV with one row an entry; mappings such as the venue become columns of their own, `venue.name`."""
    rows = []
    for entry in entries:
        row: dict[str, str] = {}
        for key, value in entry.items():
            parts = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            row |= {name: cell(part) for name, part in parts.items()}
        rows.append(row)
    order = list(keys)
    columns = sorted({name for row in rows for name in row}, key=lambda name: (order.index(name.split(".")[0]), name))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# Feeds


def page_of(name: str, key: str, site: str) -> str:
    """Where the site shows an entry: papers have pages of their own, tools and articles stand in a list."""
    return f"{site}/generated/papers/{key}.html" if name == "papers" else f"{site}/generated/{name}.html#{key}"


def additions(data: dict[str, list[dict[str, Any]]], site: str) -> list[dict[str, Any]]:
    """The newest entries of all files, as both feeds need them."""
    listed = [(name, entry) for name in catalog.FILES for entry in data[name]]
    listed.sort(key=lambda item: item[1]["added"], reverse=True)  # stable: file and id decide within a day
    return [
        {
            # Of file and id alone: it stays the same when the site moves or a title is corrected.
            "id": uuid.uuid5(uuid.NAMESPACE_URL, f"awesome-diffusion-pruning/{name}/{entry['id']}").urn,
            "title": entry.get("title") or entry["name"],
            "url": page_of(name, entry["id"], site) if site else entry["url"],
            "external_url": entry["url"],
            "summary": entry["summary"],
            "authors": entry.get("authors", []),
            "date": f"{entry['added']}T00:00:00Z",
            "tags": [name.removesuffix("s"), entry.get("family") or entry["kind"]],
        }
        for name, entry in listed[:FEED_LENGTH]
    ]


def json_feed(items: list[dict[str, Any]], site: str) -> str:
    """feed.json, JSON Feed 1.1."""
    feed: dict[str, Any] = {"version": "https://jsonfeed.org/version/1.1", "title": NAME, "description": ABOUT}
    if site:
        feed |= {"home_page_url": f"{site}/", "feed_url": f"{site}/{PUBLISHED}/feed.json"}
    feed["language"] = "en"
    feed["items"] = [
        {
            **{key: item[key] for key in ("id", "url", "external_url", "title")},
            "content_text": item["summary"],
            "date_published": item["date"],
            **({"authors": [{"name": name} for name in item["authors"]]} if item["authors"] else {}),
            "tags": item["tags"],
        }
        for item in items
    ]
    return dumps(feed)


def xml_text(text: str) -> str:
    """Text without the characters that XML 1.0 has no way to write."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def atom_feed(items: list[dict[str, Any]], site: str, title: str = NAME, file: str = "feed.xml") -> str:
    """feed.xml, Atom (RFC 4287)."""
    ElementTree.register_namespace("", ATOM)

    def sub(parent: ElementTree.Element, tag: str, text: str = "", **attributes: str) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, f"{{{ATOM}}}{tag}", {k: xml_text(v) for k, v in attributes.items()})
        element.text = xml_text(text) or None
        return element

    feed = ElementTree.Element(f"{{{ATOM}}}feed")
    sub(feed, "id", uuid.uuid5(uuid.NAMESPACE_URL, FEEDS[file]).urn)
    sub(feed, "title", title)
    sub(feed, "subtitle", ABOUT)
    sub(feed, "updated", items[0]["date"] if items else "1970-01-01T00:00:00Z")
    sub(sub(feed, "author"), "name", f"Contributors to {NAME}")
    sub(feed, "rights", "CC0-1.0")
    if site:
        sub(feed, "link", rel="alternate", href=f"{site}/")
        sub(feed, "link", rel="self", href=f"{site}/{PUBLISHED}/{file}", type="application/atom+xml")
    for item in items:
        entry = sub(feed, "entry")
        sub(entry, "id", item["id"])
        sub(entry, "title", item["title"])
        sub(entry, "link", rel="alternate", href=item["url"])
        sub(entry, "updated", item["date"])
        sub(entry, "published", item["date"])
        for name in item["authors"]:
            sub(sub(entry, "author"), "name", name)
        for tag in item["tags"]:
            sub(entry, "category", term=tag)
        sub(entry, "summary", item["summary"])
    ElementTree.indent(feed)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(feed, encoding="unicode") + "\n"


# llms.txt


def md(text: str) -> str:
    """Text on one line in which nothing acts as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", line(text))


def llms(data: dict[str, list[dict[str, Any]]], vocab: dict[str, Any], site: str) -> str:
    """llms.txt: what there is, where the data lies, and one line an entry."""
    base = f"{site}/{PUBLISHED}/" if site else ""
    claims = sum(len(paper.get("claims", [])) for paper in data["papers"])
    files = {
        "papers.json": f"{len(data['papers'])} papers, {claims} claims; every field",
        "tools.json": f"{len(data['tools'])} tools",
        "articles.json": f"{len(data['articles'])} tutorials, posts and manuals",
        "papers.bib": "all papers for citation",
        "feed.xml": "the newest entries (Atom)",
    }
    lines = [
        f"# {NAME}",
        "",
        f"> {ABOUT}",
        "",
        "A claim is a number that a paper prints, with the place where it is printed; it is not our measurement. "
        "`checked` is the day on which the facts were compared with a primary page; an entry without it is unchecked. "
        f"Licence of the data: CC0-1.0 ({LICENCE}).",
        "",
        "## Data",
        "",
        *(f"- [{name}]({base}{name}): {text}" for name, text in files.items()),
    ]
    shelves = {f"Papers: {v['label']}": ("papers", "family", k) for k, v in vocab["family"].items()}
    shelves |= {"Tools": ("tools", "", ""), "Articles": ("articles", "", "")}
    for heading, (name, key, value) in shelves.items():
        entries = [entry for entry in data[name] if not key or entry[key] == value]
        if entries:
            lines += ["", f"## {heading}", ""]
        for entry in entries:
            address = re.sub(r"[()\s<>]", lambda m: f"%{ord(m[0]):02X}", entry["url"])
            lines.append(f"- [{md(entry.get('title') or entry['name'])}]({address}): {md(entry['summary'])}")
    return "\n".join(lines) + "\n"


# Files


def dumps(value: Any) -> str:
    """JSON for people and programs."""
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def site_url(root: Path) -> str:
    """The address of the site, as mkdocs.yml states it; empty while it states none."""
    found = re.search(
        r"^site_url: *[\"']?(https?://[^\s\"']+)", (root / "mkdocs.yml").read_text(encoding="utf-8"), re.M
    )
    return found[1].rstrip("/") if found else ""


def exports(data: dict[str, list[dict[str, Any]]], root: Path) -> dict[str, str]:
    """Every file by name."""
    site, files = site_url(root), {}
    for name in catalog.FILES:
        schema = json.loads((root / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))
        files[f"{name}.json"] = dumps(data[name])
        files[f"{name}.csv"] = table(data[name], schema["items"]["properties"])
    items = additions(data, site)
    files |= {"papers.bib": bibtex(data["papers"]), "feed.json": json_feed(items, site)}
    files |= {"feed.xml": atom_feed(items, site), "llms.txt": llms(data, catalog.vocabulary(root).data, site)}
    return files


def main(argv: list[str] | None = None, root: Path = catalog.ROOT) -> int:
    """Export a valid catalogue; 1 and nothing written if it is not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write; made if it does not exist")
    folder = parser.parse_args(argv).folder
    problems, documents = validate.check(root)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    files = exports({name: documents[name].data for name in catalog.FILES}, root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            for name, text in files.items():
                (Path(scratch) / name).write_bytes(text.encode("utf-8"))
            for name in files:  # only when every file is whole
                os.replace(Path(scratch) / name, folder / name)
    except OSError as error:
        print(f"{folder}: {error.strerror}  fix: name a folder that can be written", file=sys.stderr)
        return 1
    print(f"{len(files)} files in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
