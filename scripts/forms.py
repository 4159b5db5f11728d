"""Issue forms: what a person typed into one of .github/ISSUE_TEMPLATE/*.yml, as the fields of an entry.

The forms themselves say which heading of an issue's body is which field, so there is no second list to keep.
"""

import json
import re
from pathlib import Path
from typing import Any

from scripts import catalog

FORMS = ("paper", "tool", "article", "correction", "result")
UNANSWERED = ("", "_No response_", "None")
NOTHING = "nothing"  # "none" is reserved by the form language
LISTS = ("granularity", "schedule", "criterion", "recovery", "targets", "topics", "works_with", "about")


def questions(form: str, root: Path = catalog.ROOT) -> list[tuple[str, str]]:
    """Field and label of every question of a form that has a field, in its order."""
    template = catalog.read(root / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml")
    return [(part["id"], part["attributes"]["label"]) for part in template.data["body"] if "id" in part]


def answers(body: str, root: Path = catalog.ROOT) -> tuple[str, dict[str, str]]:
    """Which form a body was made with, and the answers given. Raises ValueError if it was made with none."""
    body = body.replace("\r\n", "\n")
    for form in FORMS:
        fields, spans, at = questions(form, root), [], 0
        for _, label in fields:  # headings count in the order of the form: a text that holds one stays a text
            match = re.compile(rf"^### {re.escape(label)}[ \t]*$", re.M).search(body, at)
            if not match:
                break
            spans.append(match.span())
            at = match.end()
        if len(spans) < len(fields):
            continue
        stops = [*(start for start, _ in spans[1:]), len(body)]
        texts = [body[begin:stop].strip() for (_, begin), stop in zip(spans, stops, strict=True)]
        told = {field: text for (field, _), text in zip(fields, texts, strict=True) if text not in UNANSWERED}
        return form, told
    raise ValueError(
        "this is not the body of an issue of one of our forms  fix: copy the whole body, headings included"
    )


def from_issue_form(body: str, root: Path = catalog.ROOT) -> tuple[str, dict[str, Any]]:
    """Form and fields of an issue's body. Raises ValueError with what is wrong and what to do.

    A paper, tool or article gives fields of its entry; a correction gives file, id, field, value and evidence; a
    result gives suite, device and the run itself. What was not answered is left out.
    """
    form, told = answers(body, root)
    told.pop("about_you", None)  # who wrote it is said in the issue, not in the catalogue
    if form == "correction":
        return form, correction(told, root)
    if form == "result":
        return form, result(told)
    fields: dict[str, Any] = {}
    for field, text in told.items():
        if field in LISTS:
            fields[field] = ["none" if value.startswith(NOTHING) else value for value in split(text)]
        elif field == "authors":
            people = names(text)
            complete = people[-1].casefold() != "and others"
            fields[field] = people if complete else people[:-1]
            fields |= {"authors_complete": complete} if form == "paper" else {}
        elif field == "evidence":
            fields[field] = pages(text)
        elif field == "year":
            fields[field] = int(text) if text.isdecimal() else text
        elif field == "arxiv":
            fields[field] = re.sub(
                r"^(arxiv:|https?://arxiv\.org/(abs|pdf|html)/)|(v\d+)?(\.pdf)?$", "", text, flags=re.I
            )
        elif field == "doi":
            fields[field] = re.sub(r"^(doi:|https?://(dx\.)?doi\.org/)", "", text, flags=re.I)
        elif field == "code":
            fields[field] = {"url": text, "official": told.get("code_by") == "the authors"}
        elif field == "venue":
            named = re.fullmatch(r"(.+?),? (\d{4})", text)
            if not named:
                raise ValueError(f"venue '{text}' has no year  fix: write it as in: NeurIPS 2023")
            status = told.get("venue_status", "preprint")
            fields[field] = {"name": named[1], "year": int(named[2]), "status": status}
        elif field == "package":
            fields[field] = {"pypi": text}
        elif field not in ("code_by", "venue_status"):
            fields[field] = text
    return form, fields


def split(text: str) -> list[str]:
    """Values separated by commas or lines."""
    return [value.strip() for value in re.split(r"[,\n]", text) if value.strip()]


def names(text: str) -> list[str]:
    """People, one a line."""
    return [line.strip().removeprefix("- ") for line in text.split("\n") if line.strip()]


def pages(text: str) -> list[dict[str, str]]:
    """Evidence, one page a line: its address, then what was seen there."""
    found = []
    for line in filter(None, (line.strip().removeprefix("- ") for line in text.split("\n"))):
        address, _, what = line.partition(" ")
        if not what.strip() or not re.match("<?https?://", address):
            raise ValueError(f"evidence '{line}' is not an address and what was seen there  fix: https://... Table 1")
        found.append({"url": address.strip("<>"), "what": what.strip()})
    return found


def correction(told: dict[str, str], root: Path) -> dict[str, Any]:
    """A correction; the schema says whether its new value is text, a list, a number or a truth value."""
    missing = [key for key in ("file", "id", "field", "value", "evidence") if key not in told]
    if missing:
        raise ValueError(f"the correction does not say: {', '.join(missing)}  fix: answer these questions")
    if told["file"] not in catalog.FILES:
        raise ValueError(f"there is no file '{told['file']}'  fix: one of {', '.join(catalog.FILES)}")
    text, value = told["value"], told["value"]
    schema = json.loads((root / "schemas" / f"{told['file']}.schema.json").read_text(encoding="utf-8"))["items"]
    kind = schema["properties"].get(told["field"], {}).get("type", "string")
    if told["field"] == "authors":
        value = names(text)
    elif kind == "array" and not text.startswith("["):
        value = split(text)
    elif kind != "string" or text.startswith("{"):  # mappings are references in the schema, texts never begin so
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"the value {text} is not of type {kind}  fix: write it as JSON") from None
    return {**told, "value": value, "evidence": pages(told["evidence"])}


def result(told: dict[str, str]) -> dict[str, Any]:
    """A run of another machine: the content of its result file."""
    text = re.sub(r"^```\w*\n|\n```$", "", told.get("run", ""))
    try:
        run = json.loads(text)
    except (ValueError, RecursionError):
        run = None
    if not isinstance(run, dict) or not {"suite", "device"} <= told.keys():
        raise ValueError("the result file is not one JSON object  fix: paste a file of results/ unchanged")
    return {**told, "run": run}
