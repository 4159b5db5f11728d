"""A page for every paper: facts, claims beside what we measured, evidence with dates, related entries, BibTeX."""

import html
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import log

from scripts import claims, export
from scripts.catalog import Document
from scripts.methods import links_of
from scripts.text import NOTE, anchor, esc, h, link, sentence, slug, terms, venue_of

RELATED = 6
UP = "../"


def pages(document: Document, data: dict, vocab: dict, links: dict, repo: str, runs: list[dict]) -> dict[str, str]:
    """Id of a paper -> Markdown of site/generated/papers/ID.md."""
    near = related(document.data)
    titles = {paper["id"]: paper["title"] for paper in document.data}
    mentions = defaultdict(list)
    for kind, field in (("tools", "works_with"), ("articles", "about")):
        for entry in data[kind]:
            for paper in entry.get(field, []):
                title = esc(entry.get("name") or entry["title"])
                mentions[paper].append(f"{kind.removesuffix('s')} [{title}]({UP}{kind}.md#{entry['id']})")
    return {
        paper["id"]: "\n".join(
            [
                *head(paper, vocab),
                *claims_section(paper, vocab, runs),
                *evidence_section(paper, document.mark((i,))[0], links, repo),
                *related_section(near[paper["id"]], mentions[paper["id"]], titles),
                "## BibTeX",
                "",
                "```` text",
                export.bib_entry(paper),
                "````",
                "",
            ]
        )
        for i, paper in enumerate(document.data)
    }


def head(paper: dict, vocab: dict) -> list[str]:
    """Title, people, where it appeared, links, summary, facts."""
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
    facts = {
        "Family": ("family", [paper["family"]]),
        "Removes": ("granularity", paper["granularity"]),
        "Criterion": ("criterion", paper["criterion"]),
        "Schedule": ("schedule", paper["schedule"]),
        "Recovery": ("recovery", paper["recovery"]),
        "Models": ("models", paper["targets"]),
    }
    listed = [f"- **{label}:** {terms(vocab, name, values, UP)}" for label, (name, values) in facts.items()]
    methods = links_of(paper, UP)
    about = html.escape(" ".join(paper["summary"].split()))  # the theme puts it into an attribute as it is
    return [
        f"---\nhide: [navigation, toc]\ndescription: {json.dumps(about)}\n---",
        "",
        f"# {esc(paper['title'])}",
        "",
        f"<!-- {NOTE.format(source='papers.yaml and results/')} -->",
        "",
        f"{esc(authors)}. {appeared}. {', '.join(addresses)}. [All papers]({UP}papers.md)",
        "",
        sentence(paper["summary"]),
        "",
        *listed,
        *([f"- **Equation, code and measurements here:** {', '.join(methods)}"] if methods else []),
        *([f"- **Limits:** {sentence(paper['limits'])}"] if "limits" in paper else []),
        "",
    ]


def claims_section(paper: dict, vocab: dict, runs: list[dict]) -> list[str]:
    """The numbers that the paper prints, each beside our verdict; then the runs of ours that come nearest."""
    lines = ["## Claimed and measured", ""]
    if "claims" in paper:
        lines += [stacked(CLAIM_HEADS, [claim_cells(paper, claim, vocab, runs) for claim in paper["claims"]]), ""]
        lines += [f"Rules of the verdicts: [claimed against measured]({UP}claims.md).", ""]
    else:
        lines += ["No number of this paper is in the catalogue yet.", ""]
    nearest = claims.nearest(paper, runs)
    if nearest:
        tests = "; it tests none of the numbers above" if "claims" in paper else ""
        lines += [
            f"The nearest that we measured, on another model and with a criterion of our own choice{tests}:",
            "",
            stacked(claims.RUN_HEADS, claims.run_cells(nearest, f"{UP}runs.html")),
            "",
        ]
    return lines


CLAIM_HEADS = ("Metric", "Setting", "Dense", "Pruned", "Hardware", "Printed in", "Measured here")


def claim_cells(paper: dict, claim: dict, vocab: dict, runs: list[dict]) -> list[str]:
    """One printed number as HTML: the unit is left out where it only repeats the metric."""
    label = vocab["metric"][claim["metric"]]["label"]
    unit = "" if claim["unit"].lower() == label.lower() else f" {claim['unit']}"
    numbers = ["not printed" if number is None else f"{number}{unit}" for number in (claim["dense"], claim["pruned"])]
    return [
        anchor(label, f"{UP}glossary.html#{slug('metric', claim['metric'])}"),
        *map(h, (claim["setting"], *numbers, claim["hardware"] or "not stated")),
        anchor(claim["where"], claim["evidence"]),
        claims.sentence_of(claims.verdict(paper, claim, runs, vocab)),
    ]


def stacked(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in HTML whose rows are cards on a phone: each cell knows the name of its column."""
    head = "".join(f'<th scope="col">{h(name)}</th>' for name in heads)
    body = [
        "<tr>" + "".join(f'<td data-label="{h(n)}">{cell}</td>' for n, cell in zip(heads, row, strict=True)) + "</tr>"
        for row in rows
    ]
    return f'<table class="data stack"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def evidence_section(paper: dict, line: int, links: dict, repo: str) -> list[str]:
    """Pages seen and when, date of the check, state of the link, where to edit."""
    record = links.get(paper["url"])
    state = f"link: {esc(record['class'])} on {esc(record['last_checked'])}" if record else "link not yet checked"
    checked = f"facts checked {paper['checked']}" if "checked" in paper else "facts not checked on a primary page"
    place = f"[edit this entry]({repo}/edit/main/papers.yaml#L{line})" if repo else f"edit: papers.yaml, line {line}"
    seen = [f"- {page['seen']}: {link(page['what'], page['url'])}" for page in paper["evidence"]]
    stated = f"Added {paper['added']}; {checked}; confidence {paper['confidence']}; {state}; {place}."
    return ["## Evidence", "", *seen, "", stated, ""]


def related_section(near: list[tuple[str, int]], mentions: list[str], titles: dict[str, str]) -> list[str]:
    """Papers with the most uncommon facts in common, and the tools and articles that name this one."""
    lines = ["## Related", ""] if near or mentions else []
    lines += [f"- [{esc(titles[other])}]({other}.md), {n} fact{'s' if n > 1 else ''} in common" for other, n in near]
    lines += [f"- {mention}" for mention in mentions]
    return [*lines, ""] if lines else []


def related(papers: list[dict]) -> dict[str, list[tuple[str, int]]]:
    """For every paper those that share most facts with it, rare facts counting more: (id, number of shared facts)."""
    holders = defaultdict(list)
    for paper in papers:
        facts = {
            (field, v) for field in ("granularity", "criterion", "targets", "schedule", "authors") for v in paper[field]
        }
        for fact in facts | {("family", paper["family"])}:
            holders[fact].append(paper["id"])
    weight, shared = defaultdict(Counter), defaultdict(Counter)
    for fact, ids in holders.items():
        if fact[1] == "other" or len(ids) > max(50, len(papers) // 8):  # what so many have in common says little
            continue
        for one in ids:
            for other in ids:
                if one != other:
                    weight[one][other] += log(len(papers) / len(ids))
                    shared[one][other] += 1
    best = {}
    for paper in papers:
        ranked = sorted(weight[paper["id"]].items(), key=lambda item: (-item[1], item[0]))[:RELATED]
        best[paper["id"]] = [(other, shared[paper["id"]][other]) for other, _ in ranked]
    return best
