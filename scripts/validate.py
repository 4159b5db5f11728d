"""Check the catalogue: `python -m scripts.validate`. Offline, in seconds.

Shape first (the JSON Schemas), then meaning (identity, references, dates), the latter only for entries whose shape is
right. One line an error, on stderr: `papers.yaml:123:7  diff-pruning.arxiv: what is wrong  fix: what to do`.
"""

import difflib
import ipaddress
import itertools
import json
import re
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from scripts import catalog
from scripts.catalog import Document, Problem, Trail

# Addresses that name the entry itself. Code is not among them: two papers may share one repository.
IDENTITY_URLS = ("url", "project_page", "homepage")
VOCAB = "schemas/vocab.yaml"
OPEN = "FILL IN"  # how a text begins that `python -m scripts.add` left to a person
COPIES = ("copy", "reading list")  # how `what` of a page begins that repeats the work's record
PRIVATE_SUFFIXES = ("localhost", "local", "internal", "lan", "home", "corp", "test", "invalid", "example", "onion")


def name_of(data: object, trail: Trail) -> str:
    """A path in words, with ids instead of indexes: `diff-pruning.claims[cifar10-fid].metric`."""
    words = ""
    for step in trail:
        data = data[step] if isinstance(data, list) or (isinstance(data, dict) and step in data) else None
        if isinstance(step, int):
            named = data.get("id") if isinstance(data, dict) else None
            label = named if isinstance(named, str) else str(step)
            words += f"[{label}]" if words else label
        else:
            words += f".{step}" if words else step
    return words or "(file)"


def located(file: str, document: Document, trail: Trail, what: str, fix: str) -> Problem:
    """A problem at the place in the file where `trail` leads."""
    what, fix = (" ".join(text.split()) for text in (what, fix))  # quoted text may hold line breaks; an error is a line
    return Problem(file, *document.mark(trail), name_of(document.data, trail), what, fix)


def vocabulary_problems(root: Path, vocab: Document) -> Iterator[Problem]:
    """Shape of vocab.yaml itself, and agreement of the copy that editors read."""
    if vocab.problems or not isinstance(vocab.data, dict):
        yield from vocab.problems or [Problem(VOCAB, 1, 1, "(file)", "it is empty", "restore it from git")]
        return
    shaped = True
    schemas = "".join(path.read_text(encoding="utf-8") for path in (root / "schemas").glob("*.schema.json"))
    for name in sorted({*re.findall(r"vocab\.schema\.json#/definitions/(\w+)", schemas)} - {*vocab.data}):
        shaped = False
        yield Problem(VOCAB, 1, 1, "(file)", f"the vocabulary '{name}' is missing", "restore it from git")
    for name, values in vocab.data.items():
        if not isinstance(values, dict) or not values:
            shaped = False
            yield located(VOCAB, vocab, (name,), "it has no values", "write `id: {label: ..., definition: ...}`")
            continue
        for key, value in values.items():
            texts = list(value.values()) if isinstance(value, dict) else []
            if not texts or set(value) != {"label", "definition"} or not all(isinstance(t, str) and t for t in texts):
                shaped = False
                fix = "write {label: ..., definition: ...}, both as text"
                yield located(VOCAB, vocab, (name, key), "label or definition is missing", fix)
    copy = root / "schemas" / "vocab.schema.json"
    if shaped and (not copy.exists() or copy.read_text(encoding="utf-8") != catalog.vocab_schema(vocab.data)):
        fix = "run `python -m scripts.render`"
        yield Problem("schemas/vocab.schema.json", 1, 1, "(file)", "it differs from schemas/vocab.yaml", fix)


def schema_validator(root: Path, name: str, vocab: dict) -> jsonschema.Draft7Validator:
    """Validator of one catalogue file; its enums come from vocab.yaml directly."""
    schemas = root / "schemas"
    common = json.loads((schemas / "common.schema.json").read_text(encoding="utf-8"))
    registry = Registry().with_resources(
        [
            ("common.schema.json", Resource.from_contents(common, DRAFT7)),
            ("vocab.schema.json", Resource.from_contents(json.loads(catalog.vocab_schema(vocab)), DRAFT7)),
        ]
    )
    schema = json.loads((schemas / f"{name}.schema.json").read_text(encoding="utf-8"))
    return jsonschema.Draft7Validator(schema, registry=registry)


def shape_message(error: jsonschema.ValidationError) -> tuple[Trail, str, str]:
    """Place, what is wrong and what to do, for an error of the schema library."""
    trail, value, schema, limit = tuple(error.absolute_path), error.instance, error.schema, error.validator_value
    shown = json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    about = schema.get("description", "see the schema")
    match error.validator:
        case "required":
            key = next(k for k in limit if k not in value and f"'{k}' is a required" in error.message)
            return trail, f"the key '{key}' is missing", f"add `{key}:` ({schema['properties'][key]['description']})"
        case "additionalProperties":
            key = next(k for k in value if k not in schema["properties"])
            near = difflib.get_close_matches(key, schema["properties"], 1)
            known = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(schema['properties'])}"
            return (*trail, key), f"the key '{key}' is unknown", known
        case "enum":
            near = difflib.get_close_matches(str(value), limit, 1, 0.5)
            known = f"did you mean '{near[0]}'?" if near else f"known values: {', '.join(limit)}"
            vocabulary = "a new value is added in schemas/vocab.yaml, with a definition"
            return trail, f"{shown} is not in the vocabulary", f"{known} ({vocabulary})"
        case "type":
            wanted = limit if isinstance(limit, str) else " or ".join(limit)
            if wanted == "string" and isinstance(value, int | float):
                return trail, f"{shown} is read as a number or truth value", f'put it in quotes: "..." ({about})'
            if not trail:
                return trail, f"the file holds {shown}", "write a list of entries, or [] for none"
            fix = "leave the key out if it is unknown" if value is None else about
            return trail, f"{shown} is not of type {wanted}", fix
        case "maxLength":
            return trail, f"it has {len(value)} characters; at most {limit} are allowed", "shorten it"
        case "minLength" | "minItems":
            return trail, f"{shown} is too short; at least {limit} needed", about
        case "uniqueItems":
            return trail, f"{shown} lists a value twice", "keep one of the two"
        case "pattern":
            return trail, f"{shown} does not have the right form", about
    return trail, error.message, about


def url_problem(url: str) -> str | None:
    """Why an address may not stand in a public catalogue; None if it may."""
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip("."), parts.port  # reading the port checks it
    except ValueError as error:
        return f"is not an address ({error})"
    if parts.scheme not in ("http", "https"):
        return f"has the scheme '{parts.scheme}'; only http and https are allowed"
    if "@" in parts.netloc:
        return "carries credentials"
    try:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:  # short, octal and hexadecimal spellings (127.1, 0x7f000001) reach the same machines
            address = ipaddress.ip_address(socket.inet_aton(host))
        return None if address.is_global else "leads to a private, loopback or reserved host"
    except (OSError, ValueError):
        pass
    if "." not in host or host.split(".")[-1] in PRIVATE_SUFFIXES:
        return f"has no public host ('{host}')"
    return None


def urls_in(value: object, trail: Trail = ()) -> Iterator[tuple[Trail, str]]:
    """Every address of an entry, with its place."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from urls_in(item, (*trail, key))
    elif isinstance(value, str) and trail[-1] in (*IDENTITY_URLS, "weights", "archive_url", "evidence"):
        yield trail, value


def entry_problems(entry: dict, today: date) -> Iterator[tuple[Trail, str, str]]:
    """Meaning of one entry on its own."""
    for trail, url in urls_in(entry):
        if wrong := url_problem(url):
            yield trail, f"the address {wrong}", "give the public http(s) address of the page"

    if "arxiv" in entry:
        year, month = catalog.arxiv_date(entry["arxiv"])
        if entry["year"] != year:
            yield ("year",), f"it disagrees with arXiv {entry['arxiv']}", f"write {year}, or correct the id"
        elif entry.get("month", month) != month:
            yield ("month",), f"it disagrees with arXiv {entry['arxiv']}", f"write {month}, or correct the id"
        page = catalog.normalise_url(entry["url"]) if not url_problem(entry["url"]) else ""
        if page.startswith("arxiv.org/abs/") and page != f"arxiv.org/abs/{entry['arxiv']}":
            yield ("url",), f"it leads to another arXiv id than {entry['arxiv']}", "make both the same"
    if entry.get("family") == "pruning" and not entry["granularity"]:
        yield ("granularity",), "it is empty for a paper of the family pruning", "say what one removed unit is"

    stated: dict[Trail, str] = {(key,): entry[key] for key in ("added", "checked", "published") if key in entry}
    stated |= {("evidence", i, "seen"): page["seen"] for i, page in enumerate(entry["evidence"])}
    for trail, text in stated.items():
        try:
            if date.fromisoformat(f"{text}-01-01"[:10]) > today:  # 2024 and 2024-05 count from their first day
                yield trail, f"{text} lies in the future", f"write a day up to {today}"
        except ValueError:
            yield trail, f"{text} is not a day of the calendar", "write an existing day as YYYY-MM-DD"
    if entry.get("checked", entry["added"]) < entry["added"]:
        yield ("checked",), f"it is before added ({entry['added']})", "write the day of the check"

    if entry["confidence"] == "low" and "claims" in entry:
        yield ("claims",), "an entry of low confidence has claims", "check them and raise it, or remove them"
    if entry["confidence"] != "low" and "checked" not in entry:
        fix = "compare title and first author with a primary page and add `checked`, or write `confidence: low`"
        yield ("confidence",), f"{entry['confidence']} confidence needs `checked`", fix
    copies = {page["url"] for page in entry["evidence"] if page["what"].casefold().startswith(COPIES)}
    if entry["confidence"] == "high" and copies.issuperset(page["url"] for page in entry["evidence"]):
        fix = "add the page of the work itself under `evidence`, or write `confidence: medium`"
        yield ("confidence",), "every page under `evidence` is a copy", fix
    seen: set[str] = set()
    for i, claim in enumerate(entry.get("claims", [])):
        if claim["id"] in seen:
            yield ("claims", i, "id"), f"the claim id '{claim['id']}' is used twice", "give each claim its own id"
        seen.add(claim["id"])
        if claim["dense"] is None and claim["pruned"] is None:
            yield ("claims", i, "pruned"), "the claim has no number", "give dense, pruned or both, or remove it"
        if claim["evidence"] in copies:
            fix = "name the page of the paper, its proceedings or its authors that prints it, or remove the claim"
            yield ("claims", i, "evidence"), "the claim was seen on a copy only", fix


def open_places(value: object, trail: Trail = ()) -> Iterator[tuple[Trail, str, str]]:
    """Every place of an entry, or of a list of them, that still has to be filled in."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from open_places(item, (*trail, key))
    elif isinstance(value, str) and value.startswith(OPEN):
        yield trail, "it is not filled in", value.removeprefix(OPEN).lstrip(": ") or "write the value"


def keys_of(entry: dict) -> Iterator[tuple[str, str, str]]:
    """What must be unique within a file: (kind, field, folded value)."""
    yield "id", "id", entry["id"]
    for field in ("title", "name"):
        if field in entry:
            yield "title", field, catalog.fold(entry[field])
    for field in ("arxiv", "doi", "openreview"):
        if field in entry:
            yield field, field, entry[field].casefold() if field == "doi" else entry[field]
    for field in IDENTITY_URLS:
        if field in entry and not url_problem(entry[field]):
            yield "address", field, catalog.normalise_url(entry[field])


def same_problems(entries: dict[int, dict]) -> Iterator[tuple[Trail, str, str]]:
    """What entries of one file may not have in common."""
    owners: dict[tuple[str, str], tuple[int, str, str]] = {}
    for i, entry in entries.items():
        for kind, field, value in keys_of(entry):
            here = (i, entry["id"], field)
            owner = owners.setdefault((kind, value), here)
            if owner != here:
                what = f"the {kind} is already that of entry {owner[0] + 1}, {owner[1]}.{owner[2]}"
                yield (i, field), what, "merge the two, or correct the one that is wrong"


def order_problems(ids: dict[int, str]) -> Iterator[tuple[Trail, str, str]]:
    """Entries stand sorted by id: two people who add entries then seldom touch the same line."""
    for before, here in itertools.pairwise(ids):
        if ids[here] < ids[before]:
            yield (here, "id"), f"it stands after '{ids[before]}'", "sort the entries by id"


def reference_problems(entries: dict[int, dict], ids: dict[str, dict[int, str]]) -> Iterator[tuple[Trail, str, str]]:
    """References to other entries lead somewhere."""
    targets = {"works_with": {*ids["papers"].values()}, "about": {*ids["papers"].values(), *ids["tools"].values()}}
    for i, entry in entries.items():
        for field, known in targets.items():
            for j, target in enumerate(entry.get(field, [])):
                if target not in known:
                    near = difflib.get_close_matches(target, known, 1)
                    fix = f"did you mean '{near[0]}'?" if near else "add that entry first, or remove the reference"
                    yield (i, field, j), f"there is no entry '{target}'", fix


def check(root: Path = catalog.ROOT, today: date | None = None) -> tuple[list[Problem], dict[str, Document]]:
    """All problems of the catalogue under `root`, and what was read."""
    # The latest date anywhere on earth: a contributor east of the server is not ahead of time.
    today = today or (datetime.now(UTC) + timedelta(hours=14)).date()
    documents, vocab = catalog.load(root), catalog.vocabulary(root)
    problems = list(vocabulary_problems(root, vocab))
    if any(problem.file == VOCAB for problem in problems):
        return problems, documents  # without a vocabulary nothing else can be judged

    entries: dict[str, dict[int, dict]] = {}
    ids: dict[str, dict[int, str]] = {}
    for name, document in documents.items():
        file, data = f"{name}.yaml", document.data
        problems += document.problems
        unread = data is None and document.problems
        errors = [] if unread else list(schema_validator(root, name, vocab.data).iter_errors(data))
        left = list(open_places(data))
        shape = [shape_message(e) for e in errors if not (isinstance(e.instance, str) and e.instance.startswith(OPEN))]
        problems += [located(file, document, *problem) for problem in (*shape, *left)]
        broken = {trail[0] for trail in (*(e.absolute_path for e in errors), *(trail for trail, *_ in left)) if trail}
        listed = dict(enumerate(data)) if isinstance(data, list) else {}
        entries[name] = {i: entry for i, entry in listed.items() if i not in broken}
        names = {i: entry.get("id") for i, entry in listed.items() if isinstance(entry, dict)}
        ids[name] = {i: entry_id for i, entry_id in names.items() if isinstance(entry_id, str)}

    for name, sound in entries.items():
        found = [((i, *trail), *text) for i, entry in sound.items() for trail, *text in entry_problems(entry, today)]
        found += [*same_problems(sound), *order_problems(ids[name]), *reference_problems(sound, ids)]
        problems += [located(f"{name}.yaml", documents[name], *problem) for problem in found]
    return sorted(set(problems)), documents


def main(root: Path = catalog.ROOT, today: date | None = None) -> int:
    """Print every problem, or one line of counts."""
    problems, documents = check(root, today)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(f"{len(problems)} problem{'s' * (len(problems) > 1)} found", file=sys.stderr)
        return 1
    papers, tools, articles = (documents[name].data for name in catalog.FILES)
    claims = sum(len(paper.get("claims", [])) for paper in papers)
    print(f"valid: {len(papers)} papers with {claims} claims, {len(tools)} tools, {len(articles)} articles")
    return 0


if __name__ == "__main__":
    sys.exit(main())
