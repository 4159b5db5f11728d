"""The one reader of the catalogue: YAML with the position of every key, and what makes two titles or addresses equal.

Every other program of the catalogue reads through `read`: they agree on what a file says and on which line it says it.
"""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import yaml

ROOT = Path(__file__).resolve().parent.parent
FILES = ("papers", "tools", "articles")

Trail = tuple[str | int, ...]  # where a value stands: (3, "claims", 0, "metric")
Mark = tuple[int, int]  # line and column, both from 1, as editors count


class Problem(NamedTuple):
    """One thing that is wrong, where it is, and what to do about it."""

    file: str
    line: int
    col: int
    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}  {self.where}: {self.what}  fix: {self.fix}"


class Document(NamedTuple):
    """A YAML file as plain data, with the mark of every key and list item."""

    data: Any
    marks: dict[Trail, Mark]
    problems: list[Problem]

    def mark(self, path: Trail) -> Mark:
        """Position of a value, or of the nearest thing around it that has one."""
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, (1, 1))


class Loader(yaml.CSafeLoader):
    """The safe C loader with the scalars of YAML 1.2: `yes`, `12:30` and 2026-11-21 stay text, as in editors."""

    yaml_implicit_resolvers: ClassVar[dict] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read(path: Path) -> Document:
    """Read a YAML file. What cannot be read comes back as problems in the form of every other error."""
    marks: dict[Trail, Mark] = {}
    problems: list[Problem] = []
    seen: set[int] = set()
    text = ""

    def report(mark: yaml.Mark | None, what: str, fix: str) -> None:
        line, col = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        above = re.findall(r"^- id: *(\S+)", "\n".join(text.split("\n")[:line]), re.M)
        problems.append(Problem(path.name, line, col, above[-1] if above else "(file)", what, fix))

    def build(node: yaml.Node, at: Trail) -> Any:
        marks.setdefault(at, (node.start_mark.line + 1, node.start_mark.column + 1))
        if id(node) in seen:  # an alias: the reader would need two places to know what an entry says
            report(node.start_mark, "an alias (*name) is used", "write the value out")
            return None
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*at, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return loader.construct_object(node)
        mapping: dict[str, Any] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            if key in mapping:
                report(key_node.start_mark, f"the key '{key}' appears twice", "keep one of the two")
                continue
            marks[(*at, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            mapping[key] = build(value, (*at, key))
        return mapping

    data = None
    try:
        text = path.read_text(encoding="utf-8")
        loader = Loader(text)
        node = loader.get_single_node()
        data = build(node, ()) if node else None
    except FileNotFoundError:
        report(None, "the file does not exist", "restore it from git")
    except UnicodeDecodeError as error:
        report(None, f"byte {error.start} is not UTF-8", "save the file as UTF-8")
    except RecursionError:
        report(None, "lists or mappings are nested too deeply", "flatten them")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        fix = "check indentation and quotes; text that holds ': ' or ' #' or starts with a sign belongs in quotes"
        report(mark, f"this cannot be read: {what}", fix)
    return Document(data, marks, problems)


def load(root: Path = ROOT) -> dict[str, Document]:
    """The three catalogue files by name."""
    return {name: read(root / f"{name}.yaml") for name in FILES}


def vocabulary(root: Path = ROOT) -> Document:
    """`schemas/vocab.yaml`: vocabulary -> id -> {label, definition}."""
    document = read(root / "schemas" / "vocab.yaml")
    return document._replace(problems=[problem._replace(file="schemas/vocab.yaml") for problem in document.problems])


def vocab_schema(vocab: dict[str, dict[str, dict[str, str]]]) -> str:
    """`schemas/vocab.schema.json`: the vocabulary in the form that editors take for completion."""
    definitions = {
        name: {
            "description": f"One of the values of '{name}' in schemas/vocab.yaml.",
            "enum": list(values),
            "enumDescriptions": [value["definition"] for value in values.values()],
        }
        for name, values in vocab.items()
    }
    head = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "Generated from schemas/vocab.yaml by `python -m scripts.render`; edits are overwritten.",
    }
    return json.dumps({**head, "definitions": definitions}, indent=2, ensure_ascii=False) + "\n"


def fold(title: str) -> str:
    """A title without case, accents, spaces and punctuation: what two spellings of it have in common."""
    return "".join(c for c in unicodedata.normalize("NFKD", title).casefold() if c.isalnum())


def normalise_url(url: str) -> str:
    """The form in which two addresses of one page are equal; a key for comparison, not an address to open."""
    parts = urlsplit(url.strip())
    host = (parts.hostname or "").removeprefix("www.")
    if parts.port not in (None, 80, 443):
        host += f":{parts.port}"
    path = unquote(parts.path).rstrip("/").removesuffix(".git")
    if host in ("arxiv.org", "export.arxiv.org"):
        match = re.fullmatch(r"/(?:abs|pdf|html)/(.+?)(?:v\d+)?(?:\.pdf)?", path)
        return f"arxiv.org/abs/{match[1]}" if match else host + path
    if host == "github.com" and path.count("/") <= 2:  # owner and repository ignore case; file paths do not
        path = path.lower()
    query = urlencode(sorted((k, v) for k, v in parse_qsl(parts.query, True) if not k.startswith("utm_")))
    return host + path + (f"?{query}" if query else "") + (f"#{parts.fragment}" if parts.fragment else "")


def arxiv_date(arxiv: str) -> tuple[int, int]:
    """Year and month that an arXiv id was given out in."""
    yymm = re.search(r"\d{4}", arxiv)[0]
    year = int(yymm[:2])
    return (2000 if year < 91 else 1900) + year, int(yymm[2:])
