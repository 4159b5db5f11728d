"""The catalogue's files as text: put an entry in, or change a field, and leave every other byte as it is.

Positions come from the marks of `catalog.read`. Whatever is written is read again first: if the file then does not say
exactly what was meant (an unusual layout), nothing is changed.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from scripts import catalog
from scripts.catalog import Document


class Refused(Exception):
    """Nothing was changed; the text says why and what to do."""


def scalar(value: Any) -> str:
    """A scalar that YAML 1.1 and 1.2 read alike, on one line."""
    if not isinstance(value, str):
        return json.dumps(value)
    word = re.fullmatch(r"[a-z][a-z0-9]*([._-][a-z0-9]+)*|[0-9]{4}-[0-9]{2}-[0-9]{2}", value)
    name = re.fullmatch(r"[^\W\d_]+(-[^\W\d_]+)*( [^\W\d_]+(-[^\W\d_]+)*\.?)+", value)
    if name or (word and value not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")):
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=10**9).rstrip("\n")


def flow(value: Any) -> str:
    """Any value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {flow(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(flow, value)) + "]" if isinstance(value, list) else scalar(value)


def dump_field(key: str, value: Any) -> list[str]:
    """Lines of one key of an entry: lists of mappings one a line, everything else on the line of the key."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [f"{scalar(key)}:", *(f"  - {flow(item)}" for item in value)]
    if key == "url" and isinstance(value, str) and re.fullmatch(r"https?://[\w./~%+=?&-]+", value, re.A):
        return [f"url: {value}"]
    return [f"{scalar(key)}: {flow(value)}"]


def dump(entry: dict[str, Any]) -> list[str]:
    """Lines of an entry in the style of the catalogue."""
    lines = [line for key, value in entry.items() for line in dump_field(key, value)]
    return [f"{'  ' if i else '- '}{line}" for i, line in enumerate(lines)]


# YAML also ends lines at NEL, LS and PS, which a text may hold.
LINE = re.compile("[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029])|[^\r\n\x85\u2028\u2029]+$")


def is_comment(line: str) -> bool:
    """A line that belongs to nobody's value."""
    return not line.strip() or line.lstrip().startswith("#")


def save(path: Path, lines: list[str], expected: list) -> Document:
    """Replace a file in one step, if what it now says is exactly what is expected."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes("".join(lines).encode("utf-8"))
        document = catalog.read(scratch)
        if document.problems or document.data != expected:
            raise Refused(f"{path.name}: its layout cannot be changed safely by a program  fix: edit it by hand")
        shutil.copymode(path, scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    return document


def insert(path: Path, document: Document, entry: dict[str, Any]) -> tuple[Document, int]:
    """Write an entry before the first one with a greater id; what the file then says, and the entry's index."""
    lines = LINE.findall(path.read_bytes().decode("utf-8"))
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    block = [line + end for line in dump(entry)]
    data = document.data or []
    index = next((i for i, other in enumerate(data) if id_of(other) > entry["id"]), len(data))
    if index < len(data):
        line = document.mark((index,))[0] - 1
        at = line
        while at and lines[at - 1].lstrip().startswith("#"):  # comments right above an entry are about it
            at -= 1
        at = at or line  # those on the first line are about the file
        lines[at:at] = [*block, end]
    else:
        lines = lines if data else [line for line in lines if line.strip() != "[]"]
        if lines and not lines[-1].endswith(("\n", "\r")):
            lines[-1] += end
        lines += [end, *block] if lines and lines[-1].strip() else block
    return save(path, lines, [*data[:index], entry, *data[index:]]), index


def id_of(entry: object) -> str:
    """Id of an entry; nothing if it has none."""
    named = entry.get("id") if isinstance(entry, dict) else None
    return named if isinstance(named, str) else ""


def correct(
    path: Path, document: Document, index: int, field: str, value: Any, pages: list[dict[str, Any]]
) -> Document:
    """Replace or add one field of an entry and append pages to its evidence; every other line stays."""
    lines = LINE.findall(path.read_bytes().decode("utf-8"))
    end = "\r\n" if lines[0].endswith("\r\n") else "\n"
    if not lines[-1].endswith(("\n", "\r")):
        lines[-1] += end
    data = document.data
    entry, top = data[index], document.mark((index,))[0] - 1
    starts = [document.mark((index, key))[0] - 1 for key in entry]
    below = document.mark((index + 1,))[0] - 1 if index + 1 < len(data) else len(lines)
    spans = {}
    for key, start, stop in zip(entry, starts, [*starts[1:], below], strict=True):
        while stop > start + 1 and is_comment(lines[stop - 1]):  # what stands between two values is not of the first
            stop -= 1
        spans[key] = (start, stop)

    new = [
        ("- " if i == 0 and spans.get(field, (-1,))[0] == top else "  ") + text
        for i, text in enumerate(dump_field(field, value))
    ]
    dash = " " * (document.mark((index, "evidence", 0))[1] - 3)
    last = spans[list(entry)[-1]][1]
    edits = [
        (*spans.get(field, (last, last)), [line + end for line in new]),
        (spans["evidence"][1],) * 2 + ([f"{dash}- {flow(page)}{end}" for page in pages],),
    ]
    for start, stop, block in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        lines[start:stop] = block
    changed = {**entry, field: value, "evidence": [*entry["evidence"], *pages]}
    return save(path, lines, [*data[:index], changed, *data[index + 1 :]])
