"""What the generated pages are written with: text of the catalogue that stays text, links, headings."""

import html
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

NOTE = "Generated from {source} by `python -m scripts.render`; edits here are overwritten."
ENTITIES = {c: f"&#{ord(c)};" for c in "<>|~$^`{}"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
BACKSLASHED = {c: f"\\{c}" for c in "\\*_[]"}


# Text of the catalogue is written by strangers: nothing in it may act as Markdown or HTML.


def esc(text: object) -> str:
    """Any text as one line of Markdown that shows exactly that text."""
    plain = " ".join(str(text).split())
    plain = "".join(c for c in plain if unicodedata.category(c) not in ("Cc", "Cf"))
    safe = "".join(ENTITIES.get(c) or BACKSLASHED.get(c) or c for c in plain)
    if re.match(r"[!-/:-@]", safe) and safe[0] != "&":  # at the start of a line these open headings, lists, directives
        safe = f"&#{ord(safe[0])};{safe[1:]}"
    return re.sub(r"^(\d+)([.)])", lambda m: f"{m[1]}&#{ord(m[2])};", safe)


def link(text: object, url: str) -> str:
    """A Markdown link. The validator has refused everything but public http(s) addresses."""
    quoted = re.sub(r"[()\[\]{}\\|`^*'\"<>]", lambda m: f"%{ord(m[0]):02X}", url)
    return f"[{esc(text)}]({quoted.replace('&', '&amp;')})"


def sentence(text: str) -> str:
    """Text that ends with a full stop."""
    return esc(text if text.rstrip().endswith((".", "!", "?")) else text.rstrip() + ".")


def h(text: object) -> str:
    """Any text as one line of HTML that shows exactly that text."""
    plain = " ".join(str(text).split())
    return html.escape("".join(c for c in plain if unicodedata.category(c) not in ("Cc", "Cf")))


def anchor(text: object, url: str) -> str:
    """An HTML link."""
    return f'<a href="{h(url)}">{h(text)}</a>'


def slug(vocabulary: str, value: str) -> str:
    """Anchor of a value in the glossary. The underscore keeps it apart from ids of entries, which have none."""
    return f"{vocabulary}_{re.sub('[^a-z0-9]+', '-', value.lower())}"


def terms(vocab: dict, vocabulary: str, values: list[str], up: str = "") -> str:
    """Values as links into the glossary; `up` leads from the page's folder to site/generated/."""
    labels = [f"[{esc(vocab[vocabulary][v]['label'])}]({up}glossary.md#{slug(vocabulary, v)})" for v in values]
    return ", ".join(labels) or "not stated"


def page_head(title: str, source: str, text: str) -> list[str]:
    """Title and first paragraph of a generated page. The title comes first: MkDocs takes it for the page's name."""
    return [f"# {title}", "", f"<!-- {NOTE.format(source=source)} -->", "", text, ""]


def unbroken(page: str) -> str:
    """A page in whose tables no interval such as `(0.99 to 1.03)` and no `50 %` is broken."""
    interval = re.compile(r"\([-+]?[\d.]+(?: %)? to [-+]?[\d.]+(?: %)?\)")
    rows = (
        re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", interval.sub(r'<span class="interval">\g<0></span>', line))
        if line.startswith("|")
        else line
        for line in page.split("\n")
    )
    return "\n".join(rows)


def venue_of(paper: dict) -> str:
    """`NeurIPS 2023`, or the year alone."""
    venue = paper.get("venue")
    if not venue:
        return str(paper["year"])
    return f"{venue['name']} {venue['year']}" + (", withdrawn" if venue["status"] == "withdrawn" else "")


def newest_first(entries: Iterable[dict]) -> list[dict]:
    """Papers by date of their first version, the newest first; equal ones by id."""
    return sorted(entries, key=lambda e: (-e["year"], -e.get("month", 0), e["id"]))


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, and only if it changes: a reader never sees half of it."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
