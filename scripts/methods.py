"""A page for every taxonomy entry and every criterion: site/generated/methods/NAME.md, and their table of contents.

The idea is the first paragraph of the module's docstring; equations come from equations.yaml, each beside the source of
the function that computes it; the rest is made of runs (`method_runs.py`), of the catalogue, and of `:::` directives
that mkdocstrings fills from the docstrings. No module of `reference` that needs torch is imported: sources are parsed.
"""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from reference.request import SERVES, WITHOUT_DATA
from scripts import evidence, method_runs
from scripts.catalog import ROOT
from scripts.quality_runs import by_model
from scripts.text import NOTE, anchor, esc, h, newest_first, slug, venue_of

EQUATIONS = Path(__file__).with_name("equations.yaml")
SHOWN_PAPERS = 12
WITHIN = (
    "Compare within a table: the suites draw other prompts in another number of steps; *engine* compares both "
    "halves of guidance, *quality* and *embedded* the guided prediction."
)


class Entry(NamedTuple):
    """One entry of the taxonomy."""

    title: str
    module: str  # below `reference`
    granularities: tuple[str, ...]  # of the code; as in the catalogue
    catalogue: tuple[str, ...]  # granularities, or schedules, that the catalogue files it under
    field: str  # the field of papers.yaml that holds these
    more: tuple[str, ...] = ()  # further modules on the page
    command: str = ""  # arguments of `python -m reference prune openmoji-mmdit`


ENTRIES = {
    "unstructured": Entry(
        "Unstructured", "unstructured", ("weight",), ("weight",), "granularity", (), "--granularity weight --amount 0.3"
    ),
    "semi-structured": Entry(
        "Semi-structured (N:M)",
        "semi_structured",
        ("2:4",),
        ("N:M",),
        "granularity",
        ("criteria.n_m_permutation",),
        "--granularity 2:4",
    ),
    "structured": Entry(
        "Structured",
        "structured",
        ("neuron", "channel"),
        ("neuron", "channel"),
        "granularity",
        (),
        "--granularity neuron --amount 0.3",
    ),
    "head": Entry(
        "Attention heads", "heads", ("head",), ("head",), "granularity", (), "--granularity head --amount 0.3"
    ),
    "depth": Entry(
        "Depth", "depth", ("block",), ("block", "layer"), "granularity", (), "--granularity block --amount 0.34"
    ),
    "low-rank": Entry(
        "Low rank",
        "low_rank",
        ("rank",),
        ("rank",),
        "granularity",
        (),
        "--granularity rank --amount 0.8 --criterion output-energy",
    ),
    "iterative": Entry("Iterative", "iterative", (), ("linear", "cubic", "exponential"), "schedule"),
}


# What else was measured of an entry: text of the link, where it leads, and the entries that stand there.
ELSEWHERE = {
    "how much of each component can go": "quality.md#what-each-component-can-lose",
    "one shot against rounds, at equal training": "recovery.md#what-training-afterwards-buys",
    "with 8-bit weights, fewer steps or caching": "recovery.md#pruning-with-something-else",
    "layer by layer": "damage.md#where-it-hurts-layers",
    "blocks left out at some steps": "damage.md#when-it-hurts-blocks-and-steps",
}
ON_PAGE = {
    "quality.md#what-each-component-can-lose": ("unstructured", "structured", "head", "low-rank"),
    "recovery.md#what-training-afterwards-buys": ("unstructured", "structured", "head", "iterative"),
    "recovery.md#pruning-with-something-else": ("unstructured", "structured", "head"),
    "damage.md#where-it-hurts-layers": ("unstructured", "structured", "head"),
    "damage.md#when-it-hurts-blocks-and-steps": ("depth",),
}


class Criterion(NamedTuple):
    """One criterion: where its code stands, and what the catalogue calls it."""

    title: str
    directives: tuple[str, ...]  # modules or functions below `reference`, each documented on this page only
    catalogue: str  # value of `criterion` in papers.yaml
    like: str = ""  # the criterion whose module it shares


TAYLOR = "criteria.taylor"
CRITERIA = {
    "magnitude": Criterion("Magnitude", ("criteria.magnitude",), "magnitude"),
    "magnitude-l1": Criterion("Magnitude, L1", (), "magnitude", "magnitude"),
    "random": Criterion("Random", ("criteria.random",), "random"),
    "taylor": Criterion("Taylor", (TAYLOR,), "taylor"),
    "diff-pruning": Criterion("Diff-Pruning, as the paper prints it", (), "taylor", "taylor"),
    "diff-pruning-script": Criterion("Diff-Pruning, as the authors' script has it", (), "taylor", "taylor"),
    "diff-pruning-experiments": Criterion("Diff-Pruning, as the authors' experiments have it", (), "taylor", "taylor"),
    "wanda": Criterion("Wanda", ("criteria.wanda",), "wanda"),
    "obs": Criterion("Optimal Brain Surgeon (OBS)", ("criteria.obs", "criteria.obs_units", "criteria.hessian"), "obs"),
    "obs-diff": Criterion("OBS-Diff", ("criteria.obs_diff",), "obs-diff"),
    "head-gradient": Criterion("Head gradient", ("criteria.head_gradient",), "head-gradient"),
    "output-energy": Criterion("Output energy", ("criteria.output_energy",), "output-energy"),
    "learned": Criterion("Learned gates", ("criteria.learned", "learned_gates", "learned_depth"), "learned"),
    "block-influence": Criterion("Block influence", ("criteria.block_influence",), "block-influence"),
    "sensitivity": Criterion("Greedy sensitivity", ("criteria.sensitivity",), "sensitivity"),
}


# Code and equations


def source_of(module: str) -> Path:
    """File of a module below `reference`."""
    return ROOT / "reference" / f"{module.replace('.', '/')}.py"


def docstring(module: str) -> str:
    """Docstring of a module that is not imported."""
    return ast.get_docstring(ast.parse(source_of(module).read_text(encoding="utf-8"))) or ""


def function(dotted: str) -> tuple[str, str, int]:
    """Source of a function without its docstring, its file, its first line."""
    module, name = dotted.rsplit(".", 1)
    file = source_of(module)
    text = file.read_text(encoding="utf-8")
    node = next(n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name)
    lines = text.splitlines()
    first = node.body[0]
    told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    drop = range(first.lineno, first.end_lineno + 1) if told else range(0)
    kept = [line for n, line in enumerate(lines, 1) if node.lineno <= n <= node.end_lineno and n not in drop]
    return "\n".join(kept), file.relative_to(ROOT).as_posix(), node.lineno


def place(path: str, line: int, repo: str) -> str:
    """A line of a source file, as a link where the repository has an address."""
    return anchor(f"{path}:{line}", f"{repo}/blob/main/{path}#L{line}") if repo else f"<code>{h(path)}:{line}</code>"


@cache
def equation_table() -> dict[str, list[dict]]:
    """Page -> its equations."""
    return yaml.safe_load(EQUATIONS.read_text(encoding="utf-8"))


def equations(name: str, repo: str) -> list[str]:
    """Each equation beside the code that computes it."""
    rows = []
    for equation in equation_table()[name]:
        code, path, line = function(equation["code"])
        shown = highlight(code, PythonLexer(), HtmlFormatter(nowrap=True))
        # A blank line would end the HTML block for Markdown.
        shown = re.sub(r"\n(?=\n)", "\n&#8203;", shown.rstrip("\n"))
        rows.append(
            f'<div class="beside"><div><div class="equation" tabindex="0" role="group" aria-label="equation">'
            f"{lines_of(equation['latex'])}</div>"
            f'<p>{h(equation["says"])}</p><p class="at">{place(path, line, repo)}</p></div>'
            f'<div class="highlight"><pre tabindex="0"><code>{shown}</code></pre></div></div>'
        )
    return [*rows, ""]


def lines_of(latex: str) -> str:
    """MathML of an equation, a line for each part between `\\qquad`: beside code there is little width."""
    return "".join(convert(part.strip().rstrip(","), display="block") for part in latex.split(r"\qquad"))


def idea(module: str) -> str:
    """First paragraph of a module's docstring."""
    return esc(docstring(module).split("\n\n")[0])


def directive(module: str, members: list[str] | None = None) -> list[str]:
    """What mkdocstrings fills from the docstrings."""
    options = ["    options:", "      heading_level: 3"]
    options += [f"      members: [{', '.join(members)}]"] if members else []
    return [f"::: reference.{module}", *options, ""]


# Sections


def papers_section(papers: list[dict], heading: str, view: str) -> list[str]:
    """Papers, the newest first; the later ones of a long list folded."""
    if not papers:
        return [f"## {heading}", "", "None in the catalogue. [Contribute one](../../contribute.md).", ""]
    items = [
        f'<li><a href="../papers/{paper["id"]}.html">{h(paper["title"])}</a> ({h(venue_of(paper))})</li>'
        for paper in newest_first(papers)
    ]
    first, rest = items[:SHOWN_PAPERS], items[SHOWN_PAPERS:]
    folded = f"<details><summary>{len(rest)} older</summary><ul>{''.join(rest)}</ul></details>" if rest else ""
    return [
        f"## {heading}",
        "",
        f"{len(items)} in the catalogue, the newest first. "
        f'<a href="../papers.html{h(view)}">As a list to search and cite</a>.',
        "",
        f"<ul>{''.join(first)}</ul>{folded}",
        "",
    ]


def prune_command(arguments: str, data: bool) -> list[str]:
    """A command that runs as it stands; a criterion that looks at data is given a file of prompts."""
    prompts = ["printf 'red heart\\npizza\\ncat face\\n' > prompts.txt  # better: dozens like those you will draw"]
    given = " --prompts prompts.txt" if data else ""
    command = f"python -m reference prune openmoji-mmdit {arguments}{given} --out pruned"
    return ["```sh", *(prompts if data else []), command, "```", ""]


def all_runs(value: str, facet: str = "unit") -> str:
    """A link to the table of runs, filtered."""
    state = h(f"{facet}={value}&state=current")
    return f'<a href="../runs.html#{state}">All runs of {h(value)}</a>, with file and command.'


def pictures(runs: list[dict], name: str) -> tuple[list[str], dict[Path, bytes]]:
    """What the dense and the pruned model draw from the same noise, for runs that kept pictures; a grid a model."""
    lines, files = [], {}
    for model, own in by_model([run for run in runs if run["artifacts"]]).items():
        if len(own) > 1:
            file = f"{name}-{model}.png"
            lines += [
                f'<div class="wide" tabindex="0" role="region" aria-label="Pictures by {model}">'
                f'<img alt="By the dense model and after pruning, {name}, {model}" src="pictures/{file}"></div>',
                "",
            ]
            files[Path("site/generated/methods/pictures") / file] = evidence.grid(own)
    if not files:
        return [], {}
    said = "The same noise and the same prompt in every column; the dense model above."
    return ["## Pictures", "", said, "", *lines, evidence.CREDIT, ""], files


def drawn_of(runs: list[dict]) -> list[dict]:
    """Those of a criterion's runs whose pictures its page shows: about a third and about a half removed."""
    near = [r for r in runs if r["artifacts"] and any(abs(r["config"]["amount"] - rate) < 0.045 for rate in (0.3, 0.5))]
    return sorted(near, key=lambda run: (run["config"]["granularity"], run["config"]["amount"]))


def with_dense(runs: list[dict], wanted: list[dict]) -> list[dict]:
    """The wanted runs of one suite after the dense run that they are compared with."""
    dense = {run["run_id"]: run for run in (method_runs.dense_of(run, runs) for run in wanted)}
    return [*dense.values(), *wanted]


def helps_section(name: str, found: dict) -> list[str]:
    """When it helps and when it does not, from runs alone."""
    judged = method_runs.verdicts(name, found)
    yardstick = "random removal" if name in WITHOUT_DATA else "magnitude, which needs no data"
    lines = ["## When it helps, and when it does not", ""]
    if name == "random":
        return [*lines, "Never: it is what every other criterion must beat. The tables show by how much each does.", ""]
    if not judged:
        return [*lines, "No published run yet. Measure it: `python -m reference.bench --suite engine`.", ""]
    counted = [f"{word} in {sum(verdict.word == word for verdict in judged)}" for word in method_runs.WORDS]
    return [
        *lines,
        f"Beside {yardstick}, by the error of the prediction: {', '.join(counted)} of {len(judged)} comparisons. "
        "*No difference*: the 95 % intervals overlap, or the seeds disagree. *Place* is that among all criteria "
        "measured there. Small trained models on a CPU, nothing trained afterwards; "
        "[method and limits](../../method.md).",
        "",
        *method_runs.verdict_table(judged, found),
        "",
    ]


def criterion_page(name: str, papers: list[dict], vocab: dict, runs: dict, found: dict, repo: str) -> tuple[str, dict]:
    """Markdown of one criterion, and its pictures."""
    kind = CRITERIA[name]
    module = CRITERIA[kind.like or name].directives[0]
    mine = {cell: there for cell, there in found.items() if any(method_runs.criterion(r) == name for r in there)}
    serves = [f"| {unit} | {', '.join(scopes)} |" for unit, scopes in SERVES[name].items()]
    unit = next(iter(SERVES[name]))
    amount = "" if unit == "N:M" else " --amount 0.3"
    users = [paper for paper in papers if kind.catalogue in paper["criterion"]]
    shown = [r for r in runs["quality"] if method_runs.criterion(r) == name and not r["subject"]["is_baseline"]]
    drawings, files = pictures(with_dense(runs["quality"], drawn_of(shown)), name)
    lines = [
        *head(f"{kind.title}", f"{module.replace('.', '/')}.py"),
        idea(module),
        "",
        f"The catalogue files papers that use it under [{esc(vocab['criterion'][kind.catalogue]['label'])}]"
        f"(../glossary.md#{slug('criterion', kind.catalogue)}). "
        + ("It needs no data." if name in WITHOUT_DATA else "It looks at data: call it with `calibration`."),
        "",
        "## The equation and the code",
        "",
        *equations(name, repo),
        *helps_section(name, mine),
    ]
    if mine:
        lines += ["## Measured", "", WITHIN, "", *method_runs.error_curves(mine, tuple(SERVES[name]), name), ""]
        lines += method_runs.ranked(mine, name)
        lines += ["", f"Side by side: [criteria compared](../criteria.md). {all_runs(name, 'criterion')}", ""]
    lines += drawings
    lines += ["## What it can rank", "", "| Unit | Ranked within |", "|---|---|", *serves, ""]
    command = f"--granularity {unit.replace('N:M', '2:4')}{amount} --criterion {name}"
    lines += prune_command(command, name not in WITHOUT_DATA)
    lines += papers_section(users, "Papers that use it", f"#criterion={kind.catalogue}")
    lines += ["## Reference", ""]
    if kind.like:
        shared = f"[{CRITERIA[kind.like].title}]({kind.like}.md#reference)"
        lines += [f"It shares its module with {shared}, whose page has all functions.", ""]
    for each in kind.directives:
        lines += directive(each)
    lines += ["How it is called: [`reference.plan`](../../api.md#reference.engine.plan).", ""]
    return "\n".join(lines), files


def entry_page(name: str, papers: list[dict], vocab: dict, runs: dict, found: dict, repo: str) -> tuple[str, dict]:
    """Markdown of one taxonomy entry, and its pictures."""
    kind = ENTRIES[name]
    users = [paper for paper in papers if set(paper[kind.field]) & set(kind.catalogue)]
    terms = ", ".join(
        f"[{esc(vocab[kind.field][value]['label'])}](../glossary.md#{slug(kind.field, value)})"
        for value in kind.catalogue
    )
    embedded = [run for run in runs["embedded"] if run["subject"]["entry"] == name]
    drawings, files = pictures(with_dense(runs["embedded"], embedded), name)
    lines = [
        *head(kind.title, f"{kind.module}.py"),
        idea(kind.module),
        "",
        f"The catalogue files its papers under the {kind.field} {terms}; the [taxonomy](../../taxonomy.md) draws what "
        "goes.",
        "",
        "## The equation and the code",
        "",
        *equations(name, repo),
        "## What it buys and what it costs",
        "",
    ]
    if embedded:
        lines += [*over_rates(runs["embedded"], embedded, name), ""]
        lines += [evidence.table(with_dense(runs["embedded"], embedded), evidence.README_COLUMNS), ""]
        lines += [
            "All scored by magnitude. *Other noise* is how near two dense pictures of one prompt are that differ in "
            "their noise alone: below it, pruning changes a picture more than another seed does. Every entry beside "
            "the others: [results](../results.md).",
            "",
        ]
    else:
        lines += ["Its time is not measured yet: `make bench` times the other entries.", ""]
    more = [f"[{text}](../{place})" for text, place in ELSEWHERE.items() if name in ON_PAGE[place]]
    lines += [f"Also measured: {', '.join(more)}.", ""] if more else []
    lines += [" ".join(all_runs(unit) for unit in kind.granularities), ""] if kind.granularities else []
    mine = {cell: there for cell, there in found.items() if cell.granularity in kind.granularities and len(there) > 1}
    if mine:
        lines += ["## Which criterion", "", *method_runs.error_curves(mine, kind.granularities), ""]
        lines += method_runs.ranked(mine)
        lines += ["", "0 is the dense model; at 1 the error is as large as what is to be predicted.", ""]
    lines += drawings
    if kind.command:
        lines += prune_command(kind.command, "output-energy" in kind.command)
    else:
        lines += ["```sh", "make bench   # its rows named iterative: five rounds, distillation after each", "```", ""]
    view = f"#{kind.field}={','.join(kind.catalogue)}"
    lines += papers_section(users, "Papers", view)
    lines += ["## Reference", "", *directive(kind.module)]
    for each in kind.more:
        lines += directive(each)
    return "\n".join(lines), files


def over_rates(runs: list[dict], wanted: list[dict], name: str) -> list[str]:
    """PSNR and speed over the rate, where there are three rates."""
    usable = [run for run in wanted if run["status"] == "ok" and run["speed"]]
    if len(usable) < 3:
        return []
    unit = usable[0]["config"]["granularity"]
    rate = [run["achieved"]["unit_rate"] for run in usable]
    psnr = [method_runs.metric(run, "psnr") for run in usable]
    speed = [max(run["speed"], key=lambda s: s["pictures"]) for run in usable]
    dense = with_dense(runs, wanted)[0]
    noise = method_runs.metric(dense, "psnr_other_noise")
    close = [(r, q["value"], *q["ci95"]) for r, q in zip(rate, psnr, strict=True)]
    fast = [(r, s["speedup"], *s["speedup_ci95"]) for r, s in zip(rate, speed, strict=True)]
    line = method_runs.Line
    return [
        method_runs.curve(
            "PSNR to the dense picture, dB", "units removed", [line(name, close, True)], unit,
            ("other noise", noise["value"]) if noise else None,
        ),
        method_runs.curve(
            f"Speed-up, {speed[0]['pictures']} pictures a batch", "units removed", [line(name, fast, True)], unit,
            ("dense", 1.0),
        ),
    ]  # fmt: skip


def head(title: str, source: str) -> list[str]:
    """Title and note of a method page."""
    note = NOTE.format(source=f"reference/{source}, scripts/equations.yaml and results/")
    return ["---\nhide: [toc]\n---", "", f"# {esc(title)}", "", f"<!-- {note} -->", ""]


def links_of(paper: dict, up: str) -> list[str]:
    """Links to the pages of what a paper removes and how it scores; `up` leads to site/generated/."""
    entries = [name for name, kind in ENTRIES.items() if set(paper[kind.field]) & set(kind.catalogue)]
    own = paper["id"]  # the readings of Diff-Pruning bear its name
    criteria = [c for c in CRITERIA if c in paper["criterion"] or c == own or c.startswith(f"{own}-")]
    titles = {name: kind.title for name, kind in (ENTRIES | CRITERIA).items()}
    return [f"[{esc(titles[name])}]({up}methods/{name}.md)" for name in (*entries, *criteria)]


def index_page(found: dict, about: str) -> str:
    """Markdown of the table of contents: entries, and criteria by unit with their error where it was measured."""
    engine = {cell.granularity: there for cell, there in found.items() if cell.suite == "engine"}
    rates = {cell.granularity: str(cell) for cell in found if cell.suite == "engine"}
    units = list(engine)
    lines = [
        "---\nhide: [toc]\n---",
        "",
        "# Methods",
        "",
        "<!-- " + NOTE.format(source="reference/ and results/") + " -->",
        "",
        "A method answers several questions: what one removed unit is (the entries), how units are scored (the "
        "criteria), among which units the lowest go, in how many rounds. Each page has the idea, the equation beside "
        "the code, what was measured, and the papers.",
        "",
        "## Entries of the taxonomy",
        "",
        "| Entry | Removes | Idea |",
        "|---|---|---|",
        *(
            f"| [{esc(kind.title)}]({name}.md) | {_units(kind)} | {_idea_alone(kind.module)} |"
            for name, kind in ENTRIES.items()
        ),
        "",
        "## Criteria",
        "",
        "Prediction error with that share of that unit removed and nothing trained afterwards: 0 is the dense "
        "model, 1 the error of predicting nothing. Bold: the lowest of a column, and those whose 95 % interval "
        f"overlaps its own. A dash: it does not rank such units. {about} Intervals and the error of each seed: "
        "[criteria compared](../criteria.md).",
        "",
        "| Criterion | Data | " + " | ".join(rates[unit] for unit in units) + " |",
        "|---|---|" + "---:|" * len(units),
    ]
    for name, kind in CRITERIA.items():
        cells = []
        for unit in units:
            there = engine[unit]
            run = next((r for r in there if method_runs.criterion(r) == name), None)
            serves = ("N:M" if ":" in unit else unit) in SERVES[name]
            value = (
                f"{method_runs.metric(run, method_runs.ERROR)['value']:.3f}" if run else "not run" if serves else "-"
            )
            best = run is not None and not method_runs.apart(there[0], run)
            cells.append(f"**{value}**" if best else value)
        data = "no" if name in WITHOUT_DATA else "yes"
        lines.append(f"| [{esc(kind.title)}]({name}.md) | {data} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _idea_alone(module: str) -> str:
    """The idea without the name before its colon, which stands in a column of its own."""
    text = idea(module).partition(": ")[2] or idea(module)
    return text[0].upper() + text[1:]


def _units(kind: Entry) -> str:
    return ", ".join(kind.granularities) or "any unit, in rounds"


def pages(papers: list[dict], vocab: dict, repo: str) -> tuple[dict[str, str], dict[Path, bytes]]:
    """Name -> Markdown of site/generated/methods/NAME.md; pictures by path below the root."""
    runs = method_runs.published()
    found = method_runs.cells(runs)
    models = ", ".join(f"`{model}`" for model in dict.fromkeys(cell.model for cell in found if cell.suite == "engine"))
    texts, files = {"index": index_page(found, f"All on {models}, a small model." if models else "")}, {}
    for names, make in ((ENTRIES, entry_page), (CRITERIA, criterion_page)):
        for name in names:
            texts[name], drawn = make(name, papers, vocab, runs, found, repo)
            files |= drawn
    return texts, files
