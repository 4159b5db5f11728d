"""Write what is generated from the catalogue: `python -m scripts.render [--check]`.

Fills the blocks between `<!-- generated:NAME -->` and `<!-- /generated:NAME -->` in README.md, the pages in
site/generated/ and schemas/vocab.schema.json. Running it twice changes nothing. `--check` writes nothing and exits 1
if README.md or the schema differ from what it would write.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from scripts import (
    benchmarks,
    catalog,
    chooser,
    claims,
    evidence,
    export,
    ledger,
    lists,
    method_runs,
    methods,
    paper_page,
    quality,
    quality_runs,
    social_card,
    subjects,
    validate,
)
from scripts import runs as run_rows
from scripts.text import NOTE, esc, link, newest_first, page_head, sentence, slug, unbroken, venue_of, write

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


# Order


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


def site_glossary(vocab: dict) -> str:
    """Every closed vocabulary with its definitions."""
    lines = page_head(
        "Glossary",
        "schemas/vocab.yaml",
        "The words that the catalogue, the code and the results share, each as it is written there. Words of the "
        "measurements, such as *other noise* or *phantom*: [how it is measured](../benchmarks.md).",
    )
    order = list(VOCABULARIES)
    for name in sorted(vocab, key=lambda name: order.index(name) if name in order else len(order)):
        lines += ["", f"## {esc(VOCABULARIES.get(name, name))} {{ #{slug('vocabulary', name)} }}", ""]
        for key, value in vocab[name].items():
            term = f"**{esc(value['label'])}**{{ #{slug(name, key)} }}"
            lines.append(f"- {term} <code>{esc(key)}</code>: {esc(value['definition'])}")
    return "\n".join(lines) + "\n"


# Files


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
    data = {name: document.data for name, document in documents.items()}
    known = {name: {entry["id"] for entry in document.data} for name, document in documents.items()}
    try:
        rows = run_rows.collect()
    except ValueError as error:  # names the file of a run that is there twice
        print(error, file=sys.stderr)
        return 1
    note = "<!-- " + NOTE + " -->"
    blocks = {
        "papers": f"{note.format(source='papers.yaml')}\n\n{readme_papers(papers.data, vocab)}",
        "tools": f"{note.format(source='tools.yaml')}\n\n{readme_tools(tools.data, vocab)}",
        "articles": f"{note.format(source='articles.yaml')}\n\n{readme_articles(articles.data, vocab)}",
        "results": f"{note.format(source='results/')}\n\n{evidence.readme_block(rows)}\n",
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
    runs = evidence.published()
    tests = runs + [row.run for row in rows if row.suite != "embedded" and row.state == "current"]
    judged = ledger.entries(papers.data, tests, vocab)
    measured = claims.measured_here(papers.data, tests)
    pages = {kind: lists.page(kind, documents[kind], vocab, links, address, known, measured) for kind in catalog.FILES}
    pages |= {
        "claims": ledger.page(judged, vocab, subjects.sentence(rows)),
        "glossary": site_glossary(vocab),
        "results": evidence.site_page(rows),
        "coverage": evidence.coverage_page(),
        "criteria": evidence.criteria_page(rows),
    }
    pages |= benchmarks.pages(rows, address)
    measured_pages, grids = quality.pages(rows)
    pages |= measured_pages
    by_paper = paper_page.pages(papers, data, vocab, links, address, tests)
    pages |= {f"papers/{key}": text for key, text in by_paper.items()}
    by_method, drawings = methods.pages(papers.data, vocab, address)
    pages |= {f"methods/{key}": text for key, text in by_method.items()}
    write(readme_path, readme)
    for name, text in pages.items():
        write(root / "site" / "generated" / f"{name}.md", unbroken(text))
    counts = (
        f"{len(papers.data)} papers, {len(tools.data)} tools, {len(articles.data)} articles, each with its evidence"
    )
    drawings |= {Path("site/generated/pictures/social-card.png"): social_card.card(counts)}
    generated = root / "site" / "generated"
    for old in generated.rglob("*.md"):  # its entry was removed or renamed
        if old.relative_to(generated).with_suffix("").as_posix() not in pages:
            old.unlink()
    for path, content in (evidence.pictures(rows) | grids | drawings).items():
        write(root / path, content)
    bib = {paper["id"]: export.bib_entry(paper) for paper in papers.data}
    # A classic script: pages opened from disk may load neither JSON nor modules.
    script = f"/* {NOTE.format(source='papers.yaml')} */\nwindow.bibtex = {json.dumps(bib, ensure_ascii=False)};\n"
    write(root / "site" / "generated" / "data" / "bibtex.js", script)
    write(
        root / "site" / "generated" / "data" / "runs.js",
        chooser.script(
            method_runs.published(),
            papers.data,
            vocab,
            quality_runs.of_protocol(rows, "quality-recovery"),
            subjects.sentence(rows),
        ),
    )
    loaded = benchmarks.files(rows, root / "site" / "generated") | {"charts/claims.js": ledger.script(judged)}
    for path, content in loaded.items():
        write(root / "site" / "generated" / path, content)
    feed = ledger.feed(judged, export.site_url(root))
    write(root / "site" / "generated" / "data" / "verdicts.xml", feed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
