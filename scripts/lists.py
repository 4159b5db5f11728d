"""The catalogue's list pages: papers, tools, articles, each one list in HTML that reads without a script.

site/javascripts/catalog.js searches, filters and sorts the list: every item carries its values as `data-FACET`
(words of the vocabulary, separated by blanks), and the form above it, hidden until the script runs, has a checkbox for
each value that occurs.
"""

from collections import Counter

from scripts.catalog import Document
from scripts.text import NOTE, anchor, h, newest_first, slug, venue_of

HEAD = """\
---
hide: [navigation, toc]
{search}---

# {title}

<!-- {note} -->

{text}
"""


def facets_of(entry: dict, kind: str, measured: dict[str, str]) -> dict[str, list[str]]:
    """Facet -> values of an entry."""
    if kind == "papers":
        code = "official" if entry.get("code", {}).get("official") else "others" if "code" in entry else "no"
        return {
            "family": [entry["family"]],
            "granularity": entry["granularity"],
            "criterion": entry["criterion"],
            "schedule": entry["schedule"],
            "recovery": entry["recovery"],
            "target": entry["targets"],
            "year": [str(entry["year"])],
            "code": [code],
            "measured": [measured[entry["id"]]],
        }
    if kind == "tools":
        return {
            "kind": [entry["kind"]],
            "granularity": entry["granularity"],
            "diffusion": [entry["supports_diffusion"]],
            "upkeep": [entry["status"]],
        }
    return {
        "kind": [entry["kind"]],
        "topic": entry["topics"],
        "year": [entry["published"][:4]] if "published" in entry else ["undated"],
        "language": [entry["language"].split()[0]],
    }


# Facet -> heading, vocabulary. Facets without a vocabulary show their values as they are, or by LABELS.
FACETS = {
    "papers": {
        "family": ("Family", "family"),
        "granularity": ("Removes", "granularity"),
        "criterion": ("Criterion", "criterion"),
        "schedule": ("Schedule", "schedule"),
        "recovery": ("Recovery", "recovery"),
        "target": ("Model", "models"),
        "year": ("Year", None),
        "code": ("Code", None),
        "measured": ("Measured here", None),
    },
    "tools": {
        "kind": ("Kind", "tool_kind"),
        "granularity": ("Removes", "granularity"),
        "diffusion": ("Diffusion models", "diffusion_support"),
        "upkeep": ("Upkeep", "tool_status"),
    },
    "articles": {
        "kind": ("Kind", "article_kind"),
        "topic": ("Topic", "topic"),
        "year": ("Year", None),
        "language": ("Language", None),
    },
}
LABELS = {
    "code": {"official": "by the authors", "others": "by others", "no": "none known"},
    "measured": {"claim": "one of its claims", "unit": "the same kind of unit", "no": "nothing of its kind"},
}
SORTS = {
    "papers": {
        "": "newest first",
        "oldest": "oldest first",
        "title": "title",
        "added": "last added",
        "claims": "claims",
    },
    "tools": {"": "kind", "title": "name", "added": "last added"},
    "articles": {
        "": "kind",
        "newest": "newest first",
        "oldest": "oldest first",
        "title": "title",
        "added": "last added",
    },
}
INTRODUCTIONS = {
    "papers": "Every paper has a page of its own: its claims, where each is printed, and what we measured. All fields: "
    "[JSON](data/papers.json), [CSV](data/papers.csv), [BibTeX](data/papers.bib).",
    "tools": "Libraries, research code, kernels and models. Licence and upkeep are those of the day of the check.",
    "articles": "Tutorials, posts, talks, courses, documentation, and critiques of claims.",
}


def page(kind: str, document: Document, vocab: dict, links: dict, repo: str, known: dict, measured: dict) -> str:
    """Markdown of site/generated/papers.md, tools.md or articles.md."""
    line_of = {entry["id"]: document.mark((i,))[0] for i, entry in enumerate(document.data)}
    entries, item = document.data, {"papers": paper_item, "tools": tool_item, "articles": article_item}[kind]
    if kind == "papers":
        entries = newest_first(entries)
    else:
        order = list(vocab["tool_kind" if kind == "tools" else "article_kind"])
        entries = sorted(entries, key=lambda e: order.index(e["kind"]))
    values = {entry["id"]: facets_of(entry, kind, measured) for entry in entries}
    lines = [
        HEAD.format(
            search="search: {exclude: true}\n" if kind == "papers" else "",  # its papers are found by their own pages
            note=NOTE.format(source=f"{kind}.yaml"),
            title=kind.title(),
            text=INTRODUCTIONS[kind],
        ),
        f'<div class="catalogue" data-kind="{kind}">',
        form(kind, list(values.values()), vocab),
        '<ol class="entries">',
    ]
    for entry in entries:
        data = "".join(f' data-{facet}="{" ".join(v)}"' for facet, v in values[entry["id"]].items())
        data += (
            f' data-added="{entry["added"]}" data-date="{_date(entry)}" data-claims="{len(entry.get("claims", []))}"'
        )
        body = item(entry, vocab, known)
        state = "" if kind == "papers" else details(entry, line_of[entry["id"]], f"{kind}.yaml", links, repo)
        lines.append(f'<li id="{entry["id"]}"{data}>{body}{state}</li>')
    return "\n".join([*lines, "</ol>", "</div>"]) + "\n"


def _date(entry: dict) -> str:
    return entry.get("published") or (f"{entry['year']}-{entry.get('month', 0):02d}" if "year" in entry else "")


def form(kind: str, values: list[dict[str, list[str]]], vocab: dict) -> str:
    """Search, order and facets: one fieldset a facet, one checkbox a value that occurs."""
    options = "".join(f'<option value="{key}">{label}</option>' for key, label in SORTS[kind].items())
    bib = '<button type="button" class="bib">BibTeX of this view</button>' if kind == "papers" else ""
    parts = [
        '<form class="finder" role="search" hidden>',
        f'<p class="ask"><label>Search<input type="search" name="q" autocomplete="off" spellcheck="false" '
        f'placeholder="words in any order"></label><label>Order<select name="sort">{options}</select></label></p>',
        f'<p class="act"><output aria-live="polite"></output><button type="reset">Clear all</button>{bib}</p>',
        '<details class="facets"><summary>Filters</summary><div>',
    ]
    for facet, (heading, vocabulary) in FACETS[kind].items():
        found = Counter(value for entry in values for value in entry[facet])
        if len(found) < 2:  # nothing to choose
            continue
        known = list(vocab[vocabulary]) if vocabulary else list(LABELS.get(facet, [])) or sorted(found, reverse=True)
        parts.append(f'<fieldset data-facet="{facet}"><legend>{heading}</legend>')
        for value in (v for v in known if v in found):
            label = vocab[vocabulary][value]["label"] if vocabulary else LABELS.get(facet, {}).get(value, value)
            box = f'<input type="checkbox" name="{facet}" value="{h(value)}">'
            parts.append(f"<label>{box}{h(label)} <span>{found[value]}</span></label>")
        parts.append("</fieldset>")
    parts.append("</div></details>")
    if kind == "papers":
        parts.append('<div class="bibtex" hidden><label>BibTeX<textarea readonly rows="12"></textarea></label></div>')
    return "".join([*parts, "</form>"])


def labels(vocab: dict, vocabulary: str, values: list[str], facet: str) -> str:
    """Values as small links into the glossary."""
    return "".join(
        f'<a class="tag {facet}" data-unit="{h(v)}" href="glossary.html#{slug(vocabulary, v)}">'
        f"{h(vocab[vocabulary][v]['label'])}</a>"
        for v in values
    )


def paper_item(paper: dict, vocab: dict, known: dict) -> str:
    """One paper: title, people, summary, tags, links."""
    people = paper["authors"]
    shown = ", ".join(people[:3]) + (" and others" if len(people) > 3 or not paper["authors_complete"] else "")
    addresses = [anchor("paper", paper["url"])]
    addresses += [anchor("code", paper["code"]["url"])] if "code" in paper else []
    addresses += [anchor("project page", paper["project_page"])] if "project_page" in paper else []
    claims = len(paper.get("claims", []))
    counted = f" · {claims} claim{'s' if claims > 1 else ''}" if claims else ""
    tags = labels(vocab, "family", [paper["family"]], "family")
    tags += labels(vocab, "granularity", paper["granularity"], "unit")
    return (
        f'<h2><a href="papers/{paper["id"]}.html">{h(paper["title"])}</a></h2>'
        f'<p class="by">{h(shown)} · {h(venue_of(paper))}{counted}</p><p>{h(paper["summary"])}</p>'
        f'<p class="tags">{tags} {" · ".join(addresses)}</p>'
    )


def tool_item(tool: dict, vocab: dict, known: dict) -> str:
    """One tool with its facts."""
    addresses = [anchor("home page", tool["homepage"])] if "homepage" in tool else []
    upkeep = vocab["tool_status"][tool["status"]]["label"].lower()
    facts = [tool["language"], tool["license"], "upkeep unknown" if tool["status"] == "unknown" else upkeep]
    facts += [f"package {tool['package']['pypi']}"] if "package" in tool else []
    facts += [f"version seen {tool['version_seen']}"] if "version_seen" in tool else []
    support = f"Diffusion models: {vocab['diffusion_support'][tool['supports_diffusion']]['label'].lower()}"
    support += f". {tool['diffusion_note']}" if "diffusion_note" in tool else ""
    papers = entries_by_id(tool.get("works_with", []), {"papers": known["papers"]})
    return (
        f"<h2>{anchor(tool['name'], tool['url'])}</h2>"
        f'<p class="by">{h(" · ".join(facts))}</p><p>{h(tool["summary"])}</p>'
        f'<p class="note">{h(support)}</p>'
        + (f'<p class="note">Limits: {h(tool["limits"])}</p>' if "limits" in tool else "")
        + f'<p class="tags">{labels(vocab, "tool_kind", [tool["kind"]], "family")}'
        f"{labels(vocab, 'granularity', tool['granularity'], 'unit')} {' · '.join(addresses)}"
        f"{' Papers: ' + papers if papers else ''}</p>"
    )


def article_item(article: dict, vocab: dict, known: dict) -> str:
    """One article with its facts."""
    people = ", ".join(article["authors"]) or "author not named"
    language = "" if article["language"].split()[0] == "en" else f"in {article['language']}"
    facts = [people, article.get("publisher"), article.get("published"), language]
    copy = f" {anchor('Archived copy', article['archive_url'])}" if "archive_url" in article else ""
    about = entries_by_id(article.get("about", []), {"papers": known["papers"], "tools": known["tools"]})
    return (
        f"<h2>{anchor(article['title'], article['url'])}</h2>"
        f'<p class="by">{h(" · ".join(filter(None, facts)))}</p><p>{h(article["summary"])}</p>'
        f'<p class="tags">{labels(vocab, "article_kind", [article["kind"]], "family")}'
        f"{labels(vocab, 'topic', article['topics'], 'topic')}{copy}{' About: ' + about if about else ''}</p>"
    )


def entries_by_id(ids: list[str], known: dict[str, set[str]]) -> str:
    """Ids of entries as links to where they stand."""
    place = {"papers": "papers/{}.html", "tools": "tools.html#{}"}
    return ", ".join(
        f'<a href="{place[name].format(i)}">{i}</a>' for i in ids for name, have in known.items() if i in have
    )


def details(entry: dict, line: int, file: str, links: dict, repo: str) -> str:
    """Evidence, date of the check, state of the link and where to edit, folded."""
    seen = "; ".join(f"{anchor(page['what'], page['url'])} ({page['seen']})" for page in entry["evidence"])
    record = links.get(entry["url"])
    state = f"link: {h(record['class'])} on {h(record['last_checked'])}" if record else "link not yet checked"
    checked = f"facts checked {entry['checked']}" if "checked" in entry else "facts not checked on a primary page"
    place = anchor("edit this entry", f"{repo}/edit/main/{file}#L{line}") if repo else f"edit: {file}, line {line}"
    return (
        f"<details><summary>Evidence and state</summary><p>{seen}</p>"
        f"<p>{checked}; confidence {entry['confidence']}; {state}; {place}</p></details>"
    )
