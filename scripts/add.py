"""Add an entry: `python -m scripts.add arxiv:2305.10924`, `doi:10.1145/...` or `https://github.com/owner/name`.

Asks arXiv, Crossref or GitHub once (or reads their answer from --from FILE) and puts what it says where the entry
belongs; every other byte of the file stays. What a person must decide stands there as "FILL IN: ..." and
`python -m scripts.validate` names each such place; what nobody saw is left out.

`paper`, `tool` and `article` take the fields of --from FILE: YAML, or the body of an issue made with one of our forms.
`correction` and `result` take the body of such an issue.
"""

import argparse
import difflib
import html
import json
import re
import sys
import unicodedata
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree
from xml.parsers import expat

import jsonschema
import requests

from scripts import catalog, validate
from scripts.catalog import Document, Problem
from scripts.edit import Refused, correct, id_of, insert
from scripts.forms import FORMS, from_issue_form

FILE_OF = {"paper": "papers", "tool": "tools", "article": "articles"}
SERVICES = {
    "arxiv": ("paper", "https://export.arxiv.org/api/query?id_list="),
    "doi": ("paper", "https://api.crossref.org/works/"),
    "github": ("tool", "https://api.github.com/repos/"),
}
STOP_WORDS = {"a", "an", "and", "for", "from", "in", "of", "on", "the", "to", "towards", "via", "with", "your"}
SIMILAR = 0.93  # titles this alike are shown to the contributor, who decides


# What the services say


def source_of(text: str) -> tuple[str, str]:
    """Service and identifier that a contributor means: an address works as well as `arxiv:` or `doi:`."""
    if match := re.search(r"^(?:arxiv:|https?://(?:www\.)?arxiv\.org/(?:abs|pdf|html)/)(\S+)$", text, re.I):
        return "arxiv", re.sub(r"(v\d+)?(\.pdf)?$", "", match[1], count=1)
    if match := re.search(r"^(?:doi:|https?://(?:dx\.)?doi\.org/)(10\.\S+)$", text, re.I):
        arxiv = re.fullmatch(r"10\.48550/arxiv\.(\S+)", match[1], re.I)  # these are not Crossref's
        return ("arxiv", arxiv[1]) if arxiv else ("doi", match[1])
    if match := re.search(r"^https?://(?:www\.)?github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?$", text, re.I):
        return "github", match[1]
    raise Refused(
        f"'{text}' is not known here  fix: give arxiv:ID, doi:ID, the address of a GitHub repository, or one of "
        f"{', '.join(FORMS)} together with --from FILE"
    )


def check_arxiv(identifier: str) -> None:
    """Refuse what cannot be an arXiv id before anyone is asked."""
    if not re.fullmatch(r"[0-9]{4}\.[0-9]{4,5}|[a-z-]+(\.[A-Z]{2})?/[0-9]{7}", identifier):
        raise Refused(f"'{identifier}' is not an arXiv id  fix: write it as in arxiv:2305.10924")


def ask(service: str, identifier: str) -> bytes:
    """The answer of a service, over the network."""
    address = SERVICES[service][1] + quote(identifier, safe="/" if service == "github" else "")
    try:
        answer = requests.get(address, timeout=20, headers={"User-Agent": "awesome-diffusion-pruning-add/1"})
    except requests.RequestException as error:
        why = f"no answer ({type(error).__name__})"
    else:
        if answer.ok:
            return answer.content
        why = f"it answers {answer.status_code} {answer.reason}"
    raise Refused(f"{address}: {why}  fix: check id and network, or save that page elsewhere and add --from FILE")


def words(text: str | None) -> str:
    """Text on one line."""
    return " ".join((text or "").split())


def from_arxiv(answer: bytes, identifier: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of a paper and remarks, from the Atom answer of arXiv."""
    if answer.strip() == b"Rate exceeded.":
        raise Refused("arXiv: too many requests  fix: wait a minute")
    entry = xml(answer).find("a:entry", ATOM)
    about = words(entry.findtext("a:id", "", ATOM)) if entry is not None else ""
    if "/abs/" not in about:  # unknown ids have no entry; wrong ones have an entry that tells the error
        said = words(entry.findtext("a:summary", "", ATOM)) if entry is not None else "no such paper"
        raise Refused(f"arXiv: {identifier}: {said}  fix: correct the id")
    found = re.sub(r"v\d+$", "", about.split("/abs/")[1])
    if found != identifier:
        raise Refused(f"arXiv: the answer is about {found}, not {identifier}  fix: give the answer for {identifier}")
    printed = [words(author.findtext("a:name", "", ATOM)) for author in entry.findall("a:author", ATOM)]
    authors = list(dict.fromkeys(filter(None, printed)))
    year, month = catalog.arxiv_date(found)
    page = f"https://arxiv.org/abs/{found}"
    fields = {
        "title": words(entry.findtext("a:title", "", ATOM)),
        "authors": authors,
        "authors_complete": len(authors) == len(printed),  # two authors of one name cannot both stand in the list
        "year": year,
        "month": month,
        "arxiv": found,
        "doi": words(entry.findtext("x:doi", "", ATOM)) or None,
        "url": page,
        "evidence": [{"url": page, "what": "arXiv record: title, authors, date"}],
    }
    tags = {"x:journal_ref": "journal reference", "x:comment": "comment"}
    said = {what: words(entry.findtext(tag, "", ATOM)) for tag, what in tags.items()}
    return known(fields), [f"arXiv's {what}: {text}" for what, text in said.items() if text]


ATOM = {"a": "http://www.w3.org/2005/Atom", "x": "http://arxiv.org/schemas/atom"}


def xml(data: bytes) -> ElementTree.Element:
    """An XML document without a DTD: where none may be declared, no entity can expand or fetch anything."""

    def refuse(*_: object) -> None:
        raise Refused("the XML has a DTD, which no answer of arXiv has  fix: save the answer of export.arxiv.org")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise Refused(f"the answer is not XML ({error})  fix: save the answer of export.arxiv.org") from None


def from_doi(answer: bytes, identifier: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of a paper and remarks, from Crossref's JSON."""
    message = json_object(answer, "message")
    doi = str(message.get("DOI", ""))
    page = "https://doi.org/" + quote(doi, safe="/:;().,_-")
    if doi.casefold() != identifier.casefold():
        raise Refused(f"Crossref: the answer is about '{doi}', not {identifier}  fix: give the answer for {identifier}")
    people = [a for a in listed(message.get("author")) if isinstance(a, dict)]
    printed = [words(f"{a.get('given') or ''} {a.get('family') or a.get('name') or ''}") for a in people]
    authors = list(dict.fromkeys(filter(None, printed)))
    issued = message["issued"] if isinstance(message.get("issued"), dict) else {}
    day = listed(first(issued.get("date-parts")))
    year, month = (*(part if isinstance(part, int) else None for part in day[:2]), None, None)[:2]
    container = plain(first(message.get("container-title")))
    acronym = re.search(r"\(([A-Z][A-Za-z]+)\)$", container)
    venue = acronym[1] if acronym else words(re.sub(r"\b(19|20)\d\d\b", "", container))
    fields = {
        "title": plain(first(message.get("title"))),
        "authors": authors,
        "authors_complete": len(authors) == len(printed) if authors else None,
        "year": year,
        "month": month,
        "doi": doi,
        "venue": {"name": venue, "year": year, "status": "published"} if venue and year else None,
        "url": page,
        "evidence": [{"url": page, "what": "Crossref record: title, authors, date"}],
    }
    return known(fields), [f"Crossref's container: {container}"] if container else []


def from_github(answer: bytes, identifier: str, today: date) -> tuple[dict[str, Any], list[str]]:
    """Fields of a tool and remarks, from GitHub's JSON."""
    repository = json_object(answer)
    name, url = str(repository.get("full_name", "")), str(repository.get("html_url", ""))
    if name.casefold() != identifier.casefold():
        wrong = f"GitHub: the answer is about '{name}', not {identifier}"
        raise Refused(f"{wrong}  fix: give its present name, or the answer for {identifier}")
    stated, pushed = repository.get("license"), str(repository.get("pushed_at") or "")[:10]
    spdx = stated.get("spdx_id") if isinstance(stated, dict) else "none stated"
    alive = pushed >= (today - timedelta(days=365)).isoformat()
    fields = {
        "name": repository.get("name"),
        "url": url,
        "homepage": repository.get("homepage") if url_fits(repository.get("homepage"), url) else None,
        "license": spdx if spdx not in (None, "NOASSERTION") else None,
        "language": repository.get("language"),
        "status": "archived" if repository.get("archived") else "active" if alive else None,
        "evidence": [{"url": url, "what": f"GitHub record: licence, language, last push {pushed}".rstrip(" ")}],
    }
    description = words(str(repository.get("description") or ""))
    return known(fields), [f"its owners describe it so: {description}"] if description else []


def url_fits(homepage: object, url: str) -> bool:
    """Whether a home page may stand beside the address of the repository."""
    if not isinstance(homepage, str) or not re.match(r"https?://\S+$", homepage) or validate.url_problem(homepage):
        return False
    return catalog.normalise_url(homepage) != catalog.normalise_url(url)


def json_object(data: bytes, key: str | None = None) -> dict:
    """A JSON object, or the one under `key`."""
    try:
        value = json.loads(data)
        value = value[key] if key else value
    except (ValueError, KeyError, TypeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused("the answer is not the JSON that the service gives  fix: save its answer again")
    return value


def listed(value: object) -> list:
    """A list; anything else is an empty one."""
    return value if isinstance(value, list) else []


def first(value: object) -> Any:
    """First item of a list, or None."""
    return next(iter(listed(value)), None)


def plain(markup: object) -> str:
    """Text of a Crossref title, which may hold tags of JATS or HTML."""
    return words(html.unescape(re.sub(r"</?[A-Za-z][^<>]*>", "", str(markup or ""))))


def known(fields: dict[str, Any]) -> dict[str, Any]:
    """What was seen."""
    return {key: value for key, value in fields.items() if value not in (None, "", [])}


# From fields to an entry


def place(field: dict[str, Any], vocab: dict[str, dict]) -> str | list[str]:
    """What stands in a required field that nobody told: the validator shows it to whoever fills it in."""
    refs = [field.get("items", {}), *field.get("allOf", [])]
    ref = next((part["$ref"] for part in refs if "$ref" in part), "")
    values = vocab.get(ref.rsplit("/", 1)[-1], {}) if ref.startswith("vocab") else {}
    hint = f" ({', '.join(values)})" if 0 < len(values) <= 20 else " (see schemas/vocab.yaml)" if values else ""
    hint = " (true or false)" if field.get("type") == "boolean" else hint
    text = f"{validate.OPEN}: {field['description']}{hint}"
    return [text] if field.get("type") == "array" or ref.endswith("/people") else text


def tidy(value: Any) -> Any:
    """A value with every text on one line and without invisible control characters."""
    if isinstance(value, dict):
        return {key: tidy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tidy(item) for item in value]
    if isinstance(value, str):
        return "".join(c for c in words(value) if unicodedata.category(c) not in ("Cc", "Cs"))
    return value


def complete(kind: str, fields: dict[str, Any], taken: set[str], root: Path, today: date) -> dict[str, Any]:
    """An entry with every required key, in the order of the schema."""
    schema = json.loads((root / "schemas" / f"{FILE_OF[kind]}.schema.json").read_text(encoding="utf-8"))["items"]
    told: dict[str, Any] = {"confidence": "low", "added": today.isoformat(), **tidy(fields)}
    arxiv = told.get("arxiv")
    if isinstance(arxiv, str) and re.fullmatch(schema["properties"].get("arxiv", {}).get("pattern", "$^"), arxiv):
        year, month = catalog.arxiv_date(arxiv)
        told = {"year": year, "month": month, "url": f"https://arxiv.org/abs/{arxiv}", **told}
    if "id" not in told:
        told["id"] = new_id(kind, told, taken)
    if "url" in told:
        told.setdefault("evidence", [{"url": told["url"], "what": f"{validate.OPEN}: What was seen there"}])
    for page in listed(told.get("evidence")):
        if isinstance(page, dict):
            page.setdefault("seen", today.isoformat())
    vocab = catalog.vocabulary(root).data
    entry = {}
    for key, field in schema["properties"].items():
        if key in told:
            entry[key] = told.pop(key)
        elif key in schema["required"]:
            entry[key] = place(field, vocab)
    return entry | told  # keys that the schema does not know: the validator names them


def new_id(kind: str, told: dict[str, Any], taken: set[str]) -> str:
    """A free id: the part of a title before its colon if that is short, else its first words."""
    title = str(told.get("title") or told.get("name") or "")
    head = title.split(":")[0]
    letters = unicodedata.normalize("NFKD", head if len(head) <= 30 else title).encode("ascii", "ignore").decode()
    parts = re.findall("[a-z0-9]+", letters.lower())
    if len(head) > 30 or (head == title and kind != "tool"):
        parts = [part for part in parts if part not in STOP_WORDS][:3]
    base = "-".join(parts)[:50].strip("-") or kind
    year = told.get("year")
    second = f"{base}-{year}" if isinstance(year, int) else f"{base}-{'code' if kind == 'tool' else kind}"
    return next(i for i in (base, second, *(f"{base}-{n}" for n in range(2, len(taken) + 4))) if i not in taken)


# Duplicates


def keys(entry: object) -> list[tuple[str, str, str]]:
    """What of an entry must be unique: (kind, field, value). Entries may still be incomplete here."""
    if not id_of(entry):
        return []
    texts = {k: v for k, v in entry.items() if isinstance(v, str) and not v.startswith(validate.OPEN)}
    return list(validate.keys_of({**texts, "id": entry["id"]}))


def duplicates(file: str, document: Document, entry: dict[str, Any]) -> list[Problem]:
    """Entries that are the same thing already."""
    new = {(kind, value): field for kind, field, value in keys(entry)}
    fix = "correct that entry instead of adding a second"
    return [
        Problem(file, *document.mark((i, field)), f"{other['id']}.{field}", f"it has this {kind} already", fix)
        for i, other in enumerate(listed(document.data))
        for kind, field, value in keys(other)
        if (kind, value) in new
    ]


def there_already(service: str, identifier: str, root: Path) -> None:
    """Refuse what the catalogue has under this very identifier, before anyone is asked."""
    page = {"arxiv": "https://arxiv.org/abs/", "doi": "https://doi.org/", "github": "https://github.com/"}[service]
    path = root / f"{FILE_OF[SERVICES[service][0]]}.yaml"
    probe = {"id": "?", "url": page + identifier} | ({} if service == "github" else {service: identifier})
    if same := duplicates(path.name, catalog.read(path), probe):
        raise Refused("\n".join(map(str, same)) + "\nnothing was added")


def similar(file: str, document: Document, entry: dict[str, Any]) -> list[str]:
    """Entries whose title is nearly that of the new one."""
    title = catalog.fold(str(entry.get("title") or entry.get("name")))
    folded = {}
    for i, other in enumerate(document.data or []):
        if isinstance(other, dict):
            folded[catalog.fold(str(other.get("title") or other.get("name")))] = i
    near = difflib.get_close_matches(title, folded, 3, SIMILAR)
    return [f"{file}:{document.mark((folded[t],))[0]}  {id_of(document.data[folded[t]])}" for t in near]


# Commands


def add(kind: str, fields: dict[str, Any], root: Path, today: date) -> list[str]:
    """Put a new entry into its file; lines that say where and what is left to do."""
    documents, path = catalog.load(root), root / f"{FILE_OF[kind]}.yaml"
    document = documents[FILE_OF[kind]]
    if document.problems or not isinstance(document.data, list | None):
        raise Refused("\n".join(map(str, document.problems)) or f"{path.name}: it is not a list  fix: write a list")
    taken = {id_of(other) for other_file in documents.values() for other in listed(other_file.data)}
    entry = complete(kind, fields, taken, root, today)
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", id_of(entry)):
        raise Refused(f"'{entry['id']}' is no id  fix: lower-case words and digits joined by hyphens")
    if same := duplicates(path.name, document, entry):
        raise Refused("\n".join(map(str, same)) + "\nnothing was added")
    alike = similar(path.name, document, entry)
    document, index = insert(path, document, entry)
    schema = json.loads((root / "schemas" / f"{FILE_OF[kind]}.schema.json").read_text(encoding="utf-8"))["items"]
    left = [validate.located(path.name, document, (index, *t), *rest) for t, *rest in validate.open_places(entry)]
    return [
        f"{path.name}:{document.mark((index,))[0]}  {entry['id']} added; its id never changes once it is merged",
        *(f"a title almost like this one stands in {other}: make sure that they are two" for other in alike),
        *map(str, left),
        f"left out, add what you saw: {', '.join(key for key in schema['properties'] if key not in entry)}",
    ]


def apply_correction(wish: dict[str, Any], root: Path, today: date) -> list[str]:
    """Change one field of one entry and add the page that shows it."""
    name, field = wish["file"], wish["field"]
    path, document = root / f"{name}.yaml", catalog.load(root)[name]
    index = next((i for i, entry in enumerate(listed(document.data)) if id_of(entry) == wish["id"]), None)
    if document.problems or index is None:
        raise Refused("\n".join(map(str, document.problems)) or f"{path.name}: no entry '{wish['id']}'  fix: its id")
    known_keys = json.loads((root / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8"))["items"]
    if field not in known_keys["properties"] or field in ("id", "evidence"):
        raise Refused(f"'{field}' is not a field that a form can correct  fix: edit {path.name} by hand")
    if not first(document.data[index].get("evidence")):
        raise Refused(f"{path.name}: {wish['id']} has no evidence to add to  fix: edit it by hand")
    pages = [{**page, "seen": today.isoformat()} for page in tidy(wish["evidence"])]
    document = correct(path, document, index, field, tidy(wish["value"]), pages)
    return [f"{path.name}:{document.mark((index, field))[0]}  {wish['id']}.{field} changed; compare it with the page"]


def write_result(wish: dict[str, Any], root: Path) -> list[str]:
    """Put a result file of another machine into its place."""
    run = wish["run"]
    try:
        jsonschema.validate(run, json.loads((root / "schemas" / "result.schema.json").read_text(encoding="utf-8")))
    except jsonschema.ValidationError as error:
        where = ".".join(map(str, error.absolute_path)) or "(file)"
        raise Refused(f"the result file, {where}: {words(error.message)[:200]}  fix: paste it unchanged") from None
    if not all(re.fullmatch(r"[A-Za-z0-9][\w.-]*", part, re.A) for part in (wish["suite"], wish["device"])):
        raise Refused("suite and device name folders  fix: letters, digits, dots and hyphens only")
    folder = root / "results" / wish["suite"] / wish["device"]
    path = folder / f"{run['run_id']}.json"
    if path.exists():
        raise Refused(f"{path.relative_to(root)} exists; runs are never overwritten  fix: nothing, it is there already")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    pictures = ", ".join(artifact["path"] for artifact in run["artifacts"])
    return [f"{path.relative_to(root)} written", *([f"put beside it: {pictures}"] if pictures else [])]


def fields_of(kind: str, path: Path) -> dict[str, Any]:
    """Fields in a file that a person wrote: YAML, or the body of an issue."""
    text = read(path).decode("utf-8", "replace")
    if text.lstrip().startswith("### "):
        found, fields = from_issue_form(text)
        if found != kind:
            raise Refused(f"{path.name}: this is the form '{found}', not '{kind}'  fix: python -m scripts.add {found}")
        return fields
    document = catalog.read(path)
    if document.problems or not isinstance(document.data, dict) or kind not in FILE_OF:
        form = f"the body of an issue of the form '{kind}'" if kind not in FILE_OF else "fields as `key: value`"
        raise Refused(
            "\n".join(map(str, document.problems)) or f"{path.name}: it does not hold {form}  fix: write them"
        )
    return document.data


def read(path: Path) -> bytes:
    """Content of a file that the contributor named."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}  fix: name a file that can be read") from None


def run(source: str, file: Path | None, root: Path, today: date) -> list[str]:
    """Do what the command line says; lines to print."""
    if source in FORMS:
        if file is None:
            raise Refused(f"'{source}' needs its fields  fix: add --from FILE (YAML, or the body of an issue)")
        try:
            fields = fields_of(source, file)
        except ValueError as error:
            raise Refused(str(error)) from None
        if source == "result":
            return write_result(fields, root)
        return apply_correction(fields, root, today) if source == "correction" else add(source, fields, root, today)
    service, identifier = source_of(source)
    if service == "arxiv":
        check_arxiv(identifier)
    there_already(service, identifier, root)
    answer = read(file) if file else ask(service, identifier)
    if service == "github":
        fields, remarks = from_github(answer, identifier, today)
    else:
        fields, remarks = (from_arxiv if service == "arxiv" else from_doi)(answer, identifier)
    return [*add(SERVICES[service][0], fields, root, today), *remarks]


def main(argv: list[str] | None = None, root: Path = catalog.ROOT, today: date | None = None) -> int:
    """Add what the command line says; 1 and one line an obstacle if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.add", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help=f"arxiv:ID, doi:ID, a GitHub address, or one of {', '.join(FORMS)}")
    parser.add_argument("--from", dest="file", type=Path, help="read the service's answer, or the fields, from FILE")
    options = parser.parse_args(argv)
    try:
        print(*run(options.source, options.file, root, today or date.today()), sep="\n")
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
