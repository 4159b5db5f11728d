"""Write what is generated from the catalogue: `python -m scripts.render [--check]`.

Fills the blocks between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->` in README.md, the pages in
site/generated/ and schemas/vocab.schema.json. Running it twice changes nothing. `--check` writes nothing and exits 1
if README.md or the schema differ from what it would write.
"""

import argparse
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from scripts import catalog, evidence, validate
from scripts.catalog import Document

NOTE = "Generated from {source} by `python -m scripts.render`; edits here are overwritten."
ENTITIES = {c: f"&#{ord(c)};" for c in "<>|~$^`{}"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
BACKSLASHED = {c: f"\\{c}" for c in "\\*_[]"}
VOCABULARIES = {
    "family": "Families",
    "granularity": "Granularities",
    "criterion": "Criteria",
    "scope": "Scopes",
    "component": "Components",
    "schedule": "Schedules",
    "recovery": "Recovery",
    "metric": "Metrics of claims",
    "models": "Models",
    "confidence": "Confidence",
    "venue_status": "State of publication",
    "tool_kind": "Kinds of tools",
    "tool_status": "Upkeep of tools",
    "diffusion_support": "Support of diffusion models",
    "article_kind": "Kinds of articles",
    "topic": "Topics of articles",
}


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


def slug(vocabulary: str, value: str) -> str:
    """Anchor of a value in the glossary. The underscore keeps it apart from ids of entries, which have none."""
    return f"{vocabulary}_{re.sub('[^a-z0-9]+', '-', value.lower())}"


# Order


def newest_first(entries: Iterable[dict]) -> list[dict]:
    """Papers by date of their first version, the newest first; equal ones by id."""
    return sorted(entries, key=lambda e: (-e["year"], -e.get("month", 0), e["id"]))


def shelves(papers: list[dict], vocab: dict) -> list[tuple[str, list[tuple[str | None, list[dict]]]]]:
    """Papers by family; those of pruning further by granularity. A paper with several stands under its first."""
    shelved = []
    for family in vocab["family"]:
        members = [paper for paper in papers if paper["family"] == family]
        if family == "pruning":
            groups = [(g, [p for p in members if p["granularity"][0] == g]) for g in vocab["granularity"]]
        else:
            groups = [(None, members)]
        shelved.append((family, [(group, newest_first(found)) for group, found in groups if found]))
    return [(family, groups) for family, groups in shelved if groups]


def by_kind(entries: list[dict], kinds: dict) -> list[tuple[str, list[dict]]]:
    """Tools or articles by kind, in the order of the vocabulary."""
    grouped = [(kind, [entry for entry in entries if entry["kind"] == kind]) for kind in kinds]
    return [(kind, members) for kind, members in grouped if members]


# README


def venue_of(paper: dict) -> str:
    """`NeurIPS 2023`, or the year alone."""
    venue = paper.get("venue")
    if not venue:
        return str(paper["year"])
    return f"{venue['name']} {venue['year']}" + (", withdrawn" if venue["status"] == "withdrawn" else "")


def readme_papers(papers: list[dict], vocab: dict) -> str:
    """One line a paper."""
    lines = []
    for family, groups in shelves(papers, vocab):
        count = sum(len(members) for _, members in groups)
        lines += [f"### Papers: {vocab['family'][family]['label'].lower()}", ""]
        lines += [f"{count} {'entry' if count == 1 else 'entries'}. {vocab['family'][family]['definition']}", ""]
        for group, members in groups:
            if group:
                lines += [f"#### {vocab['granularity'][group]['label']}", ""]
            for paper in members:
                code = f" {link('code', paper['code']['url'])}" if "code" in paper else ""
                title = link(paper["title"], paper["url"])
                lines.append(f"- {title} - {sentence(paper['summary'])} ({esc(venue_of(paper))}){code}")
            lines.append("")
    return "\n".join(lines)


def readme_tools(tools: list[dict], vocab: dict) -> str:
    """One line a tool."""
    lines = []
    for kind, members in by_kind(tools, vocab["tool_kind"]):
        lines += [f"### Tools: {vocab['tool_kind'][kind]['label'].lower()}", ""]
        for tool in members:
            status = vocab["tool_status"][tool["status"]]["label"].lower()
            facts = esc(f"{tool['license']}, {status}" if tool["license"] != "none stated" else f"no licence, {status}")
            lines.append(f"- {link(tool['name'], tool['url'])} - {sentence(tool['summary'])} ({facts})")
        lines.append("")
    return "\n".join(lines)


def readme_articles(articles: list[dict], vocab: dict) -> str:
    """One line an article."""
    lines = []
    for kind, members in by_kind(articles, vocab["article_kind"]):
        lines += [f"### Articles: {vocab['article_kind'][kind]['label'].lower()}", ""]
        for article in members:
            facts = ", ".join(filter(None, (article.get("publisher"), article.get("published", "")[:4])))
            source = f" ({esc(facts)})" if facts else ""
            lines.append(f"- {link(article['title'], article['url'])} - {sentence(article['summary'])}{source}")
        lines.append("")
    return "\n".join(lines)


def fill(readme: str, blocks: dict[str, str]) -> tuple[str, list[str]]:
    """README with its blocks filled, and the names of those that differed. Raises ValueError for bad markers."""
    markers = [(m[2], bool(m[1]), m.start()) for m in re.finditer(r"<!-- (/?)generated:(\S+) -->", readme)]
    wrong = []
    for name in dict.fromkeys([*blocks, *(name for name, _, _ in markers)]):
        found = [closes for marked, closes, _ in markers if marked == name]
        at = next((readme.count("\n", 0, start) + 1 for marked, _, start in markers if marked == name), 1)
        pair = f"`<!-- generated:{name} -->` ... `<!-- /generated:{name} -->`"
        if name not in blocks:
            wrong.append(f"README.md:{at}  unknown block '{name}'  fix: known are {', '.join(blocks)}")
        elif found != [False, True]:
            state = "has no markers" if not found else "has unbalanced markers"
            wrong.append(f"README.md:{at}  block '{name}' {state}  fix: write {pair} once, in this order")
    for (name, _, start), (after, closes, _) in zip(markers[::2], markers[1::2], strict=False):
        if not wrong and (after != name or not closes):
            line = readme.count("\n", 0, start) + 1
            wrong.append(f"README.md:{line}  blocks '{name}' and '{after}' overlap  fix: close one before the next")
    if wrong:
        raise ValueError("\n".join(wrong))
    differing = []
    for name, text in blocks.items():
        pattern = rf"(?<=<!-- generated:{name} -->).*?(?=<!-- /generated:{name} -->)"
        filled = re.sub(pattern, lambda _, text=text: f"\n{text}\n", readme, count=1, flags=re.S)
        if filled != readme:
            differing.append(name)
        readme = filled
    return readme, differing


# Site


def terms(vocab: dict, vocabulary: str, values: list[str]) -> str:
    """Values as links into the glossary."""
    labels = [f"[{esc(vocab[vocabulary][v]['label'])}](glossary.md#{slug(vocabulary, v)})" for v in values]
    return ", ".join(labels) or "not stated"


def page_head(title: str, source: str, text: str) -> list[str]:
    """Title and first paragraph of a generated page."""
    return [f"<!-- {NOTE.format(source=source)} -->", "", f"# {title}", "", text, ""]


def foot(entry: dict, line: int, file: str, links: dict, repo_url: str) -> list[str]:
    """What every entry ends with: evidence, date of the check, state of the link, where to edit."""
    seen = [f"{link(page['what'], page['url'])} ({page['seen']})" for page in entry["evidence"]]
    record = links.get(entry["url"])
    state = f"link: {esc(record['class'])} on {esc(record['last_checked'])}" if record else "link not yet checked"
    checked = f"facts checked {entry['checked']}" if "checked" in entry else "facts not checked on a primary page"
    place = f"[edit this entry]({repo_url}/edit/main/{file}#L{line})" if repo_url else f"edit: {file}, line {line}"
    return [
        f"- **Evidence:** {'; '.join(seen)}",
        f"- **State:** {checked}; confidence {entry['confidence']}; {state}; {place}",
    ]


def claims_table(claims: list[dict], vocab: dict) -> list[str]:
    """The numbers that a paper prints, as it prints them."""
    lines = ["| Metric | Setting | Dense | Pruned | Hardware | Printed in |", "|---|---|---:|---:|---|---|"]
    for claim in claims:
        unit, both = esc(claim["unit"]), (claim["dense"], claim["pruned"])
        numbers = ["not printed" if number is None else f"{number} {unit}" for number in both]
        hardware = esc(claim["hardware"]) if claim["hardware"] else "hardware not stated"
        cells = [terms(vocab, "metric", [claim["metric"]]), esc(claim["setting"]), *numbers, hardware]
        lines.append(f"| {' | '.join(cells)} | {link(claim['where'], claim['evidence'])} |")
    return ["", *lines]


def site_papers(document: Document, vocab: dict, links: dict, repo_url: str) -> str:
    """Every paper with its facts and claims, each under its own anchor."""
    lines = page_head(
        "Papers",
        "papers.yaml",
        "Shelves by family; the pruning shelf by what one removed unit is (a paper with several kinds stands under the "
        "first it names). Numbers in the tables are those that the papers print, not ours: ours are on the page "
        "[Benchmarks](../benchmarks.md).",
    )
    line_of = {paper["id"]: document.mark((i,))[0] for i, paper in enumerate(document.data)}
    shelved = shelves(document.data, vocab)
    lines += ["| Shelf | Papers | What it holds |", "|---|---:|---|"]
    for family, groups in shelved:
        count = sum(len(members) for _, members in groups)
        label, definition = vocab["family"][family]["label"], vocab["family"][family]["definition"]
        lines.append(f"| [{esc(label)}](#{slug('shelf', family)}) | {count} | {esc(definition)} |")
    for family, groups in shelved:
        lines += ["", f"## {esc(vocab['family'][family]['label'])} {{ #{slug('shelf', family)} }}"]
        for group, members in groups:
            if group:
                lines += ["", f"### {esc(vocab['granularity'][group]['label'])} {{ #{slug('shelf_pruning', group)} }}"]
            for paper in members:
                lines += paper_section(paper, vocab)
                lines += foot(paper, line_of[paper["id"]], "papers.yaml", links, repo_url)
                lines += claims_table(paper["claims"], vocab) if "claims" in paper else []
    return "\n".join(lines) + "\n"


def paper_section(paper: dict, vocab: dict) -> list[str]:
    """One paper: heading, people, links, summary, facts."""
    authors = ", ".join(paper["authors"]) + ("" if paper["authors_complete"] else " and others")
    venue, since = paper.get("venue"), str(paper["year"]) + (f"-{paper['month']:02d}" if "month" in paper else "")
    status = f" ({vocab['venue_status'][venue['status']]['label'].lower()})" if venue else ""
    appeared = f"{esc(venue_of(paper))}{status}, first version {since}" if venue else f"venue not known, {since}"
    addresses = [link("paper", paper["url"])]
    if "code" in paper:
        whose = "code by the authors" if paper["code"]["official"] else "code by others"
        addresses.append(link(whose, paper["code"]["url"]))
    addresses += [link(key.replace("_", " "), paper[key]) for key in ("project_page", "weights") if key in paper]
    if "doi" in paper:
        addresses.append(link("DOI", f"https://doi.org/{paper['doi']}"))
    if "openreview" in paper:
        addresses.append(link("OpenReview", f"https://openreview.net/forum?id={paper['openreview']}"))
    facts = {"granularity": "Removes", "criterion": "Criterion", "schedule": "Schedule", "recovery": "Recovery"}
    listed = [f"**{label}:** {terms(vocab, field, paper[field])}" for field, label in facts.items()]
    return [
        "",
        f"#### {esc(paper['title'])} {{ #{paper['id']} }}",
        "",
        f"{esc(authors)}. {appeared}. {', '.join(addresses)}.",
        "",
        sentence(paper["summary"]),
        "",
        f"- {' · '.join(listed)}",
        f"- **Models:** {terms(vocab, 'models', paper['targets'])}",
        *([f"- **Limits:** {sentence(paper['limits'])}"] if "limits" in paper else []),
    ]


def references(ids: list[str], known: dict[str, set[str]]) -> str:
    """Ids of entries as links to their pages."""
    return ", ".join(f"[{i}]({page}.md#{i})" for i in ids for page, have in known.items() if i in have)


def site_tools(document: Document, vocab: dict, links: dict, repo_url: str, known: dict[str, set[str]]) -> str:
    """Every tool with its facts."""
    lines = page_head("Tools", "tools.yaml", "Libraries, research code, kernels and models, by kind.")
    line_of = {tool["id"]: document.mark((i,))[0] for i, tool in enumerate(document.data)}
    for kind, members in by_kind(document.data, vocab["tool_kind"]):
        lines += ["", f"## {esc(vocab['tool_kind'][kind]['label'])} {{ #{slug('kind', kind)} }}"]
        for tool in members:
            addresses = [link("repository" if "github.com" in tool["url"] else "page", tool["url"])]
            addresses += [link("home page", tool["homepage"])] if "homepage" in tool else []
            package = f" · **Package:** {esc(tool['package']['pypi'])}" if "package" in tool else ""
            version = f" · **Version seen:** {esc(tool['version_seen'])}" if "version_seen" in tool else ""
            note = f". {sentence(tool['diffusion_note'])}" if "diffusion_note" in tool else ""
            removes = terms(vocab, "granularity", tool["granularity"]) if tool["granularity"] else "nothing"
            works_with = references(tool.get("works_with", []), {"papers": known["papers"]})
            lines += [
                "",
                f"### {esc(tool['name'])} {{ #{tool['id']} }}",
                "",
                f"{sentence(tool['summary'])} {', '.join(addresses)}.",
                "",
                f"- **Language:** {esc(tool['language'])} · **Licence:** {esc(tool['license'])} · "
                f"**Upkeep:** {terms(vocab, 'tool_status', [tool['status']])}{package}{version}",
                f"- **Removes:** {removes} · "
                f"**Diffusion models:** {terms(vocab, 'diffusion_support', [tool['supports_diffusion']])}{note}",
                *([f"- **Papers:** {works_with}"] if works_with else []),
                *([f"- **Limits:** {sentence(tool['limits'])}"] if "limits" in tool else []),
                *foot(tool, line_of[tool["id"]], "tools.yaml", links, repo_url),
            ]
    return "\n".join(lines) + "\n"


def site_articles(document: Document, vocab: dict, links: dict, repo_url: str, known: dict[str, set[str]]) -> str:
    """Every article with its facts."""
    lines = page_head("Articles", "articles.yaml", "Tutorials, posts, talks, courses and documentation, by kind.")
    line_of = {article["id"]: document.mark((i,))[0] for i, article in enumerate(document.data)}
    for kind, members in by_kind(document.data, vocab["article_kind"]):
        lines += ["", f"## {esc(vocab['article_kind'][kind]['label'])} {{ #{slug('kind', kind)} }}"]
        for article in members:
            people = ", ".join(article["authors"]) or "author not named"
            facts = [people, article.get("publisher"), article.get("published"), article["language"]]
            copy = f" {link('Archived copy', article['archive_url'])}." if "archive_url" in article else ""
            about = references(article.get("about", []), {"papers": known["papers"], "tools": known["tools"]})
            lines += [
                "",
                f"### {esc(article['title'])} {{ #{article['id']} }}",
                "",
                f"{esc(', '.join(filter(None, facts)))}. {link('Read it', article['url'])}.{copy}",
                "",
                sentence(article["summary"]),
                "",
                f"- **Topics:** {terms(vocab, 'topic', article['topics'])}",
                *([f"- **About:** {about}"] if about else []),
                *foot(article, line_of[article["id"]], "articles.yaml", links, repo_url),
            ]
    return "\n".join(lines) + "\n"


def site_glossary(vocab: dict) -> str:
    """Every closed vocabulary with its definitions."""
    lines = page_head("Glossary", "schemas/vocab.yaml", "The words that the catalogue, the code and the results share.")
    order = list(VOCABULARIES)
    for name in sorted(vocab, key=lambda name: order.index(name) if name in order else len(order)):
        lines += ["", f"## {esc(VOCABULARIES.get(name, name))} {{ #{slug('vocabulary', name)} }}", ""]
        lines += ["| Term | Written | Meaning |", "|---|---|---|"]
        for key, value in vocab[name].items():
            term = f"**{esc(value['label'])}**{{ #{slug(name, key)} }}"
            lines.append(f"| {term} | <code>{esc(key)}</code> | {esc(value['definition'])} |")
    return "\n".join(lines) + "\n"


# Files


def write(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, and only if it changes: a reader never sees half of it."""
    data = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def repo_url(root: Path) -> str:
    """The address of the repository, as mkdocs.yml states it; empty while it states none."""
    found = re.search(r"^repo_url: *[\"']?(https://[^\s\"']+)", (root / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    return found[1].rstrip("/") if found else ""


def main(argv: list[str] | None = None, root: Path = catalog.ROOT) -> int:
    """Render everything, or with --check say what differs."""
    parser = argparse.ArgumentParser(prog="python -m scripts.render", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README.md or the schema differ")
    check = parser.parse_args(argv).check

    vocab = catalog.vocabulary(root).data
    schema_path = root / "schemas" / "vocab.schema.json"
    try:
        schema = catalog.vocab_schema(vocab)
    except (AttributeError, KeyError, TypeError):  # not a vocabulary at all: the validator says why
        schema = None
    if schema and not check:
        write(schema_path, schema)
    problems, documents = validate.check(root)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
        return 1

    papers, tools, articles = (documents[name] for name in catalog.FILES)
    known = {name: {entry["id"] for entry in document.data} for name, document in documents.items()}
    note = "<!-- " + NOTE + " -->"
    blocks = {
        "papers": f"{note.format(source='papers.yaml')}\n\n{readme_papers(papers.data, vocab)}",
        "tools": f"{note.format(source='tools.yaml')}\n\n{readme_tools(tools.data, vocab)}",
        "articles": f"{note.format(source='articles.yaml')}\n\n{readme_articles(articles.data, vocab)}",
        "results": f"{note.format(source='results/')}\n\n{evidence.readme_block()}\n",
    }
    readme_path = root / "README.md"
    try:
        readme, differing = fill(readme_path.read_text(encoding="utf-8"), blocks)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if check:
        for name in differing:
            fix = "edit the catalogue instead, then run `python -m scripts.render`"
            print(f"README.md: the block '{name}' differs from what is generated  fix: {fix}", file=sys.stderr)
        return 1 if differing else 0

    lock = root / "links.lock.json"
    links = json.loads(lock.read_text(encoding="utf-8")) if lock.exists() else {}
    address = repo_url(root)
    pages = {
        "papers": site_papers(papers, vocab, links, address),
        "tools": site_tools(tools, vocab, links, address, known),
        "articles": site_articles(articles, vocab, links, address, known),
        "glossary": site_glossary(vocab),
        "results": evidence.site_page(address),
        "coverage": evidence.coverage_page(),
        "criteria": evidence.criteria_page(),
    }
    write(readme_path, readme)
    for name, text in pages.items():
        write(root / "site" / "generated" / f"{name}.md", text)
    for path, content in evidence.pictures().items():
        write(root / path, content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
