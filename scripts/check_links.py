"""Check the links and identifiers of the catalogue: `python -m scripts.check_links`.

A pull request (`--changed-since REF`) is judged by the links that it touches, at once. A scheduled run remembers
(`links.lock.json`, written with `--update-state` only): it fails for what stayed bad over days, not for one bad hour.
Exceptions have a date on which they end (`linkcheck-allow.yaml`).

Exit codes: 0 fine (warnings allowed), 1 unexpected error, 2 failing links, 3 bad arguments, catalogue, state or
allow-list, 4 no network (the state stays as it was).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import jsonschema

from scripts import catalog, edit, link_classes, link_fetch, validate
from scripts.catalog import Trail
from scripts.link_classes import Rule, Verdict
from scripts.link_fetch import Fetcher

STATE, ALLOW = "links.lock.json", "linkcheck-allow.yaml"
URL_FIELDS = ("url", *validate.IDENTITY_URLS, "weights")
IDENTIFIERS = {
    "arxiv": "https://arxiv.org/abs/",
    "doi": "https://doi.org/",
    "openreview": "https://openreview.net/forum?id=",
}
FAIL_NOW = ("gone", "invalid")  # what a touched link may not be
QUIET = ("ok", "redirected", "allowed", "skipped")


class ConfigError(Exception):
    """Arguments, catalogue, state or allow-list cannot be used; the text says where and why."""


class Place(NamedTuple):
    """Where an address stands. `title` and `author` are set where it has to be the entry's own paper."""

    file: str
    line: int
    col: int
    entry: str
    field: str
    trail: Trail = ()
    title: str = ""
    author: str = ""
    status: str = ""  # of a tool


class Finding(NamedTuple):
    """A link with its verdict, and how bad that is in this run."""

    url: str
    verdict: Verdict
    places: tuple[Place, ...]
    level: str  # fail, warn, note or "" for nothing to say
    rule: Rule | None = None
    archive_url: str = ""


# What to check.


def addresses(value: object, trail: Trail = ()) -> Iterator[tuple[Trail, str]]:
    """Every address and identifier of an entry, the latter as the address that it stands for."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from addresses(item, (*trail, key))
    elif isinstance(value, str) and value:
        if len(trail) == 1 and trail[0] in IDENTIFIERS:
            yield trail, IDENTIFIERS[trail[0]] + value
        elif trail and (trail[-1] in URL_FIELDS or re.fullmatch(r"[a-zA-Z][\w+.-]*://\S+", value)):
            yield trail, value


def catalogue_places(root: Path) -> Iterator[tuple[str, Place]]:
    """Addresses of the three YAML files. Raises ConfigError if one cannot be read."""
    for name, document in catalog.load(root).items():
        if document.problems:
            raise ConfigError(str(document.problems[0]))
        for i, entry in enumerate(document.data if isinstance(document.data, list) else []):
            if not isinstance(entry, dict):
                continue
            authors = entry.get("authors")
            author = authors[0] if isinstance(authors, list) and authors and isinstance(authors[0], str) else ""
            for trail, url in addresses(entry):
                own = name == "papers" and trail[-1] in ("arxiv", "openreview", "url") and len(trail) == 1
                own = own and link_fetch.recognise(url)[0] in ("arxiv", "openreview")  # others tell no title
                title = entry.get("title") if own else ""
                yield (
                    url,
                    Place(
                        f"{name}.yaml",
                        *document.mark((i, *trail)),
                        str(entry.get("id", i)),
                        ".".join(str(step) for step in trail),
                        (i, *trail),
                        title if isinstance(title, str) else "",
                        author if own else "",
                        str(entry.get("status", "")),
                    ),
                )


def prose_places(root: Path) -> Iterator[tuple[str, Place]]:
    """Addresses in hand-written Markdown; what is generated or code is left out."""

    def blank(match: re.Match) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    for path in (root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "site").glob("*.md"))):
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        text = re.sub(
            r"<!-- generated:(\w+) -->.*?<!-- /generated:\1 -->|^```.*?^```|`[^`\n]*`", blank, text, flags=re.S | re.M
        )
        for match in re.finditer(r"https?://(?:[^\s<>()\"'`\]|]|\([^\s<>()]*\))+", text):
            line = text.count("\n", 0, match.start()) + 1
            col = match.start() - text.rfind("\n", 0, match.start())
            yield match[0].rstrip(".,;:!?*_"), Place(path.relative_to(root).as_posix(), line, col, "", "")


def collect(root: Path) -> dict[str, list[Place]]:
    """Every address with all its places."""
    found: dict[str, list[Place]] = defaultdict(list)
    for url, place in (*catalogue_places(root), *prose_places(root)):
        found[url].append(place)
    return dict(found)


def git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def touched(root: Path, places: Mapping[str, list[Place]], ref: str) -> dict[str, list[Place]]:
    """The links that are new since a commit, or whose entry now claims another paper."""
    commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if commit is None:
        raise ConfigError(f"--changed-since: git knows no commit '{ref}'  fix: fetch it first (git fetch origin)")
    # What the other side added since the two parted is not this side's doing.
    commit = (git(root, "merge-base", commit.strip(), "HEAD") or commit).strip()
    names = git(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", ".") or ""
    with tempfile.TemporaryDirectory() as folder:
        for name in names.split("\0"):
            if re.fullmatch(r"(?:papers|tools|articles)\.yaml|(?:README|CONTRIBUTING|site/[^/]+)\.md", name):
                path = Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(git(root, "show", f"{commit}:./{name}") or "", encoding="utf-8")
        for name in catalog.FILES:
            path = Path(folder, f"{name}.yaml")
            if not path.exists() or catalog.read(path).problems:  # then everything in it counts as new
                path.write_text("[]\n")
        before = collect(Path(folder))
    old = {(url, place.title, place.author) for url, where in before.items() for place in where}
    new = {
        url: [p for p in where if (url, p.title, p.author) not in old and (p.title or url not in before)]
        for url, where in places.items()
    }
    return {url: where for url, where in new.items() if where}


# State and exceptions.


def load_state(root: Path) -> dict[str, dict]:
    """The state; {} if there is no file. Raises ConfigError if it is damaged."""
    path = root / STATE
    if not path.exists():
        return {}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        schema = json.loads((catalog.ROOT / "schemas" / "links.schema.json").read_text(encoding="utf-8"))
        jsonschema.Draft7Validator(schema).validate(state)
        for record in state.values():
            link_classes.check_dates(record)
    except (ValueError, RecursionError, jsonschema.ValidationError) as error:
        what = link_classes.clean(getattr(error, "message", str(error)))
        raise ConfigError(f"{STATE}: it is damaged ({what})  fix: restore it from git, or write {{}}") from error
    return state


def dump_state(state: Mapping[str, Mapping]) -> str:
    """The state as text: sorted, one field a line, so that two runs differ only where links do."""
    return json.dumps(state, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def load_rules(root: Path, today: date) -> list[Rule]:
    """The allow-list. Raises ConfigError with every problem of it."""
    path = root / ALLOW
    if not path.exists():
        return []
    document = catalog.read(path)
    schema = json.loads((catalog.ROOT / "schemas" / "linkcheck.schema.json").read_text(encoding="utf-8"))
    data = [] if document.data is None else document.data
    problems = list(document.problems)
    if not problems:
        errors = jsonschema.Draft7Validator(schema).iter_errors(data)
        problems = [validate.located(ALLOW, document, *validate.shape_message(error)) for error in errors]
    if not problems:
        for i, entry in enumerate(data):
            if wrong := link_classes.rule_problem(entry, today):
                problems.append(validate.located(ALLOW, document, (i,), wrong, "see the comment at its top"))
    if problems:
        raise ConfigError("\n".join(map(str, problems)))
    days = [(date.fromisoformat(entry["verified_on"]), date.fromisoformat(entry["expires"])) for entry in data]
    texts = ("match", "pattern", "class", "reason", "verified_by")
    return [Rule(*document.mark((i,)), *(entry[key] for key in texts), *days[i]) for i, entry in enumerate(data)]


def rule_findings(
    rules: Iterable[Rule], used: set[Rule], strict: bool, whole: bool, today: date
) -> list[tuple[str, str]]:
    """(level, line) for rules that ended or that nothing needs. A pull request never fails for them."""
    lines = []
    for rule in rules:
        if rule.expires < today:
            late = today - rule.expires > timedelta(days=link_classes.GRACE_DAYS)
            line = f"{rule.place}  the rule for '{rule.pattern}' ended on {rule.expires}  fix: look again or remove it"
            lines.append(("fail" if late and not strict else "warn", line))
        elif whole and rule not in used and (today - rule.verified_on).days >= link_classes.IDLE_DAYS:
            lines.append(("warn", f"{rule.place}  the rule for '{rule.pattern}' matches nothing  fix: remove it"))
    return lines


# Judging.


def finding(
    url: str, verdict: Verdict, places: list[Place], record: Mapping, failing: bool, strict: bool, rule_of
) -> Finding:
    """How bad a verdict is. `strict` judges at once, else days count (`failing`)."""
    for place in places:
        if (
            place.title
            and verdict.cls in link_classes.FINE
            and verdict.title
            and link_fetch.recognise(url)[0] != "page"
        ):
            level, note = link_classes.compare(place.title, place.author, verdict)
            if level:
                verdict = verdict._replace(cls="mismatch", note=note)
                break
    else:
        level = ""
    if rule := rule_of(url, verdict.cls):
        return Finding(url, verdict._replace(cls="allowed", note=rule.reason), tuple(places), "", rule)
    if verdict.cls != "mismatch":
        fails = verdict.cls == "invalid" or (verdict.cls in FAIL_NOW if strict else failing)
        level = "fail" if fails else "" if verdict.cls in QUIET else "warn"
        if verdict.note.startswith("archived") and any(place.status == "active" for place in places):
            level = "warn"
    return Finding(url, verdict, tuple(places), level, None, record.get("archive_url", ""))


def advice(item: Finding) -> str:
    """What to do about a finding."""
    if item.verdict.fix:
        return f"write {item.verdict.fix} (--fix does)"
    if item.verdict.cls in ("gone", "soft-gone", "unavailable") and item.archive_url:
        return f"find the new address; an archived copy is at {item.archive_url}"
    return {
        "gone": "find the new address, or remove the link",
        "soft-gone": "find the page's new address",
        "blocked": f"open it in a browser; if it is there, add a rule to {ALLOW}",
        "mismatch": "correct the identifier, or title and authors",
        "invalid": "give the public http(s) address of the page",
        "insecure": "use another address, or tell its owner",
    }.get(item.verdict.cls, "nothing yet; it is asked again" if item.verdict.cls != "ok" else "correct `status`")


# Reports.


def text_report(findings: list[Finding], rules: list[tuple[str, str]], summary: str) -> str:
    """One line a problem, then counts."""
    lines = []
    for item in findings:
        if item.level:
            status = f" {item.verdict.status}" if item.verdict.status else ""
            note = f"  {item.verdict.note}" if item.verdict.note else ""
            for place in item.places:
                about = f"  (id: {place.entry}, field: {place.field})" if place.entry else ""
                head = f"{place.file}:{place.line}:{place.col}  {item.level}: {item.verdict.cls}{status}"
                lines.append(f"{head}  {link_classes.clean(item.url, 500)}{about}{note}  fix: {advice(item)}")
    return "\n".join([*lines, *(f"{line} ({level})" for level, line in rules), summary])


def markdown_report(findings: list[Finding], rules: list[tuple[str, str]], summary: str) -> str:
    """A summary for a job or an issue, grouped by class. Foreign text stands in code spans: there it does nothing."""

    def code(text: str) -> str:
        return "`" + link_classes.clean(text, 500).replace("`", "'") + "`"

    lines = ["# Links", "", summary]
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for item in findings:
        if item.level:
            groups[item.level, item.verdict.cls].append(item)
    for level, cls in sorted(groups):
        lines += ["", f"## {cls} ({'failing' if level == 'fail' else 'warning'}, {len(groups[level, cls])})", ""]
        for item in groups[level, cls]:
            where = ", ".join(f"{p.file}:{p.line}" + (f" ({p.entry})" if p.entry else "") for p in item.places)
            note = f": {code(item.verdict.note)}" if item.verdict.note else ""
            lines.append(f"- {code(item.url)}{note}; in {where}; fix: {code(advice(item))}")
    if rules:
        lines += ["", "## Allow-list", "", *(f"- {level}: {code(line)}" for level, line in rules)]
    return "\n".join(lines)


def github_report(findings: list[Finding], rules: list[tuple[str, str]], summary: str) -> str:
    """Annotations on the lines of a pull request."""

    def data(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    lines = []
    for item in findings:
        for place in item.places if item.level else ():
            kind = "error" if item.level == "fail" else "warning"
            where = f"file={place.file},line={place.line},col={place.col},title=link {item.verdict.cls}"
            text = f"{item.url} {item.verdict.note} fix: {advice(item)}"
            lines.append(f"::{kind} {where}::{data(link_classes.clean(text, 900))}")
    for level, line in rules:
        file, number, _ = line.split(":", 2)
        lines.append(f"::{'error' if level == 'fail' else 'warning'} file={file},line={number}::{data(line)}")
    return "\n".join([*lines, summary])


def json_report(findings: list[Finding], rules: list[tuple[str, str]], summary: str) -> str:
    """Everything, for programs."""

    def record(item: Finding) -> dict:
        verdict = item.verdict._asdict()
        verdict["class"] = verdict.pop("cls")
        verdict["hops"] = [hop._asdict() for hop in item.verdict.hops]
        places = [{key: getattr(p, key) for key in ("file", "line", "col", "entry", "field")} for p in item.places]
        rule = item.rule.place if item.rule else None
        more = {"level": item.level, "fix": item.verdict.fix, "rule": rule, "archive_url": item.archive_url}
        return {"url": item.url, **verdict, **more, "places": places}

    counts = Counter(item.verdict.cls for item in findings)
    listed = [{"level": level, "text": line} for level, line in rules]
    report = {"version": 1, "summary": summary, "counts": counts, "links": list(map(record, findings)), "rules": listed}
    return json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)


REPORTS = {"text": text_report, "json": json_report, "markdown": markdown_report, "github": github_report}


def rewrite(root: Path, findings: Iterable[Finding]) -> tuple[list[str], list[str]]:
    """Write the new address of moved links into the YAML, nothing else; what was changed and what could not be."""
    done, left = [], []
    for name in catalog.FILES:
        path, document = root / f"{name}.yaml", None
        edits = [(p, item) for item in findings if item.verdict.fix for p in item.places if p.file == path.name]
        # From the end of the file: what stands above keeps its position.
        for place, item in sorted(edits, key=lambda pair: pair[0][1:3], reverse=True):
            document = document or catalog.read(path)
            new, said = item.verdict.fix, f"{place.file}:{place.line}  {item.url} -> {item.verdict.fix}"
            expected = json.loads(json.dumps(document.data))
            node = expected
            for step in place.trail[:-1]:
                node = node[step]
            lines = edit.LINE.findall(path.read_bytes().decode("utf-8"))
            rest = "".join(lines[place.line - 1 :])[place.col - 1 :]
            key = re.match(r"""(?:["']?[\w-]+["']?\s*:\s*)?["']?""", rest)
            fits = rest.startswith(item.url, key.end()) and re.match(
                r"""["'\s,}\]]|$""", rest[key.end() + len(item.url) :]
            )
            if not fits or node[place.trail[-1]] != item.url or not re.fullmatch(r'https?://[^\s<>"\\]{1,490}', new):
                left.append(said)
                continue
            node[place.trail[-1]] = new
            head = "".join(lines[: place.line - 1]) + "".join(lines[place.line - 1 :])[: place.col - 1]
            text = head + rest[: key.end()] + new + rest[key.end() + len(item.url) :]
            try:
                document = edit.save(path, edit.LINE.findall(text), expected)
                done.append(said)
            except edit.Refused:
                left.append(said)
    return done, left


# The command.


class Parser(argparse.ArgumentParser):
    """Bad arguments are bad configuration, not failing links."""

    def error(self, message: str) -> None:
        """Raise instead of leaving with 2."""
        raise ConfigError(f"{message}  fix: see --help")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(prog="python -m scripts.check_links", description="Check the links of the catalogue.")
    parser.add_argument(
        "--changed-since", metavar="REF", help="only links that are new since this commit, judged at once"
    )
    parser.add_argument("--entry", metavar="ID", help="only the links of this entry, judged at once")
    parser.add_argument("--offline", action="store_true", help="ask nobody: form of the addresses and allow-list only")
    parser.add_argument("--fix", action="store_true", help="write the new address of moved links into the YAML")
    parser.add_argument("--format", choices=REPORTS, default="text")
    parser.add_argument("--update-state", action="store_true", help=f"write what was found to {STATE}")
    parser.add_argument("--max-time", type=float, default=900, metavar="S", help="stop asking after this many seconds")
    chosen = parser.parse_args(argv)
    if not (math.isfinite(chosen.max_time) and chosen.max_time > 0):
        parser.error("--max-time must be a positive number of seconds")
    if chosen.update_state and (chosen.changed_since or chosen.offline):
        parser.error("--update-state does not go with --changed-since or --offline: those only read the state")
    return chosen


def select(root: Path, chosen: argparse.Namespace) -> dict[str, list[Place]]:
    """The links of this run with their places."""
    places = collect(root)
    if chosen.entry:
        mine = {url: [p for p in where if p.entry == chosen.entry] for url, where in places.items()}
        places = {url: where for url, where in mine.items() if where}
        if not places:
            raise ConfigError(f"--entry: there is no entry '{chosen.entry}' with links")
    return touched(root, places, chosen.changed_since) if chosen.changed_since else places


def run(root: Path, chosen: argparse.Namespace, **network) -> int:
    """Check, report, write what was asked for; the exit code."""
    fetcher = Fetcher(max_time=chosen.max_time, **network)
    now = fetcher.clock.utc().replace(microsecond=0)
    state, rules = load_state(root), load_rules(root, now.date())
    places = select(root, chosen)
    strict, whole = bool(chosen.changed_since or chosen.entry), not (chosen.changed_since or chosen.entry)

    def known(url: str) -> bool:
        return not link_classes.due(url, state.get(url), now, link_fetch.recognise(url)[0] != "page")

    verdicts = {url: link_classes.recall(state[url]) for url in places if known(url)}
    asked = [url for url in places if url not in verdicts]
    if chosen.offline:
        for url in asked:
            wrong = validate.url_problem(url)
            verdicts[url] = Verdict("invalid", f"the address {wrong}") if wrong else Verdict("skipped", "offline")
    else:
        verdicts |= fetcher.check(asked, state)
        if fetcher.gate.no_network():
            print(
                f"no network: {len(fetcher.gate.failed)} hosts out of reach; the state was not changed", file=sys.stderr
            )
            return 4

    records = {url: state[url] for url in places if url in state}
    for url in asked:
        if verdicts[url].cls not in ("skipped", "invalid"):
            records[url] = link_classes.remember(state.get(url), verdicts[url], now)
    for url, record in [] if chosen.offline else records.items():
        if link_classes.wants_archive(record, now.date()):
            copy = fetcher.archived(url)
            if copy is not None:
                record = records[url] = {**record, "archive_checked": now.date().isoformat()}
                records[url] = {**record, "archive_url": copy} if copy else record

    used: set[Rule] = set()

    def rule_of(url: str, cls: str) -> Rule | None:
        rule = link_classes.rule_for(rules, url, cls, now.date())
        used.update([rule] if rule else [])
        return rule

    findings = []
    for url, where in places.items():
        record = records.get(url, {})
        failing = bool(record) and link_classes.failing(record, now)
        findings.append(finding(url, verdicts[url], where, record, failing, strict, rule_of))
    findings.sort(key=lambda item: (item.places[0][:3], item.url))
    notices = rule_findings(rules, used, strict, whole and not chosen.offline, now.date())

    counts = Counter(item.verdict.cls for item in findings)
    words = ", ".join(f"{counts[cls]} {cls}" for cls in link_classes.CLASSES if counts[cls])
    bad = sum(item.level == "fail" for item in findings) + sum(level == "fail" for level, _ in notices)
    cached = sum(item.verdict.cached for item in findings)
    summary = f"{len(findings)} links: {words or 'none'}; {bad} failing; {cached} known from {STATE}"
    summary += "; offline, nobody was asked" if chosen.offline else ""
    for rule in sorted(used):
        hits = sum(item.rule == rule for item in findings)
        summary += f"; {rule.place} allows {hits}"
    print(REPORTS[chosen.format](findings, notices, summary))

    if chosen.update_state:
        kept = records if whole else {**state, **records}  # a whole run forgets links that the catalogue dropped
        (root / STATE).write_text(dump_state(kept), encoding="utf-8", newline="\n")
    if chosen.fix:
        done, left = rewrite(root, findings)
        print(
            *(f"fixed: {line}" for line in done),
            *(f"not fixed, edit by hand: {line}" for line in left),
            sep="\n",
            file=sys.stderr,
        )
    return 2 if bad else 0


def repo_url(root: Path) -> str:
    """The address of the project, which the User-Agent names."""
    path = root / "mkdocs.yml"
    found = (
        re.search(r'^repo_url: *"?(https://[^\s"]+)', path.read_text(encoding="utf-8"), re.M) if path.exists() else None
    )
    return found[1] if found else ""


def main(argv: list[str] | None = None, root: Path = catalog.ROOT, **network) -> int:
    """The command. `network` (clock, resolver, services, allow_loopback, ...) is for tests."""
    try:
        chosen = arguments(argv)
        network = {"repo_url": repo_url(root), "token": os.environ.get("GITHUB_TOKEN") or None, **network}
        return run(root, chosen, **network)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 3
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
