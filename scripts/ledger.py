"""Claimed against measured, as a page, a chart and a feed. The verdicts come from `claims.py`."""

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from scripts import charts, claims, export
from scripts.charts import Chart, quantity, tooltips
from scripts.claims import FOUNDING, GAINS, WORDS, Verdict, signed
from scripts.sheet import Column, Line, sheet
from scripts.text import NOTE, anchor, h


class Entry(NamedTuple):
    """One claim with its verdict."""

    key: str  # <paper>/<claim>
    who: str
    paper: str | None  # id, for the address of its page
    family: str
    metric: str
    setting: str
    numbers: str  # as printed: dense -> pruned
    hardware: str
    printed: str  # HTML of where
    claimed: float | None  # gain, where it is one
    verdict: Verdict


COLUMNS = (
    Column("who", "Who"),
    Column("metric", "Metric"),
    Column("setting", "Setting"),
    Column("numbers", "Printed: dense → pruned"),
    Column("claimed", "Claimed gain", True),
    Column("measured", "Measured gain (95 %)", True),
    Column("verdict", "Verdict"),
    Column("why", "Why, or on what"),
    Column("where", "Printed in"),
    Column("hardware", "Hardware"),
)
FACETS = {"verdict": "Verdict", "family": "Family", "metric": "Metric", "hardware": "Hardware"}


def entries(papers: list[dict], runs: list[dict], vocab: dict) -> list[Entry]:
    """The founding note's claims, then those of all papers; the judged ones first."""
    found = [
        Entry(f"founding-note/{n}", FOUNDING.capitalize(), None, "founding note", "size" if n % 2 else "speed-up", what,
              "-", "not stated", "its expected results", claimed, verdict)
        for n, (what, claimed, verdict) in enumerate(claims.founding(runs), 1)
    ]  # fmt: skip
    for run in runs:
        if isinstance(run["config"].get("claim"), dict) and "/" not in run["config"]["claim"]["id"]:
            found.append(elsewhere(run))
    for paper in papers:
        for claim in paper.get("claims", []):
            verdict = claims.verdict(paper, claim, runs, vocab)
            both = (claim["dense"], claim["pruned"])
            known = both if claim["dense"] is not None or claim["pruned"] is None else both[1:]  # a share has no before
            unit = claim["unit"] if claim["unit"] == "x" else f" {claim['unit']}"
            numbers = " → ".join("?" if n is None else f"{n:g}" for n in known) + unit
            found.append(
                Entry(
                    f"{paper['id']}/{claim['id']}",
                    paper["title"],
                    paper["id"],
                    vocab["family"][paper["family"]]["label"],
                    vocab["metric"][claim["metric"]]["label"],
                    claim["setting"],
                    numbers,
                    claim["hardware"] or "not stated",
                    anchor(claim["where"], claim["evidence"]),
                    told(verdict.run) or gain(claim),
                    verdict,
                )
            )
    order = list(WORDS)
    return sorted(found, key=lambda entry: order.index(entry.verdict.word))


def elsewhere(run: dict) -> Entry:
    """A claim that stands in no entry of papers.yaml: the protocol of the claims suite holds what was printed."""
    claim = run["config"]["claim"]
    hardware, note = claim["printed"]["hardware"] or "not stated", claim.get("note", run["subject"]["model"])
    verdict = claims.at_full_size(run) if run["status"] == "ok" else Verdict("not comparable", [run["error"]])
    where = anchor("source", claim["source"]) if claim["source"].startswith("https://") else h(claim["source"])
    who, metric = claim["id"], claim["measure"]
    return Entry(who, who, None, "elsewhere", metric, note, "-", hardware, where, told(run), verdict)


def told(run: dict | None) -> float | None:
    """The gain that a claim of the claims suite promises, on the scale of the run's own."""
    claim = run["config"].get("claim") if run else None
    return claim["printed"]["ratio"] - 1 if isinstance(claim, dict) and claim["measure"] != "saved_gb" else None


def gain(claim: dict) -> float | None:
    """What a claim promises, where its metric is a gain and its numbers give it."""
    percent = claim["metric"].endswith("removed")
    if claim["metric"] not in GAINS or claim["pruned"] is None or (claim["dense"] is None and not percent):
        return None
    if ("%" in claim["unit"]) != percent or "fewer" in claim["unit"]:
        return None
    return GAINS[claim["metric"]](claim["dense"], claim["pruned"])


def scatter(judged: Sequence[Entry]) -> Chart | None:
    """Claimed against measured gain, for every claim that a run tests."""
    data = []
    for entry in judged:
        v = entry.verdict
        if v.measured is not None and entry.claimed is not None:
            low, high = v.interval or (v.measured, v.measured)
            data.append(
                {"who": entry.who, "what": entry.setting, "word": v.word, "run": v.run["run_id"],
                 "x": entry.claimed, "y": v.measured, "y1": low, "y2": high, "interval": v.interval}
            )  # fmt: skip
    if not data:
        return None
    ends = [min(0, *(d["y1"] for d in data)), max(0.1, *(d["x"] for d in data), *(d["y2"] for d in data))]
    percent = {"axis": {"format": "+.0%", "tickCount": 6}}
    x, y = quantity("x", "claimed gain", **percent), quantity("y", "measured gain", **percent)
    words = [word for word in WORDS if word != "not comparable"]
    mark = {"field": "word", "type": "nominal", "title": "verdict"}
    colour = mark | {"scale": {"domain": words, "range": ["#009e73", "#e69f00", "#d55e00"]}}
    shape = mark | {"scale": {"domain": words, "range": ["circle", "square", "triangle-down"]}}
    tips = tooltips(who="who", what="claim", x="claimed", y="measured", word="verdict", run="run id")
    layers = [
        charts.identity(*ends, "claimed gain", "measured gain"),
        {"mark": "rule", "encoding": {"x": x, "y": y | {"field": "y1"}, "y2": {"field": "y2"}, "color": colour}},
        {
            "mark": {"type": "point", "filled": True, "size": 110, "cursor": "pointer"},
            "encoding": {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tips},
        },
    ]
    layers[0]["encoding"] = {"x": x, "y": y}
    return Chart(
        "ledger",
        "Claimed against measured gain",
        charts.spec(f"{len(data)} claims: the gain that was claimed against ours.", data, layer=layers),
        ("Who", "Claim", "Claimed", "Measured (95 %)", "Verdict"),
        [(d["who"], d["what"], signed(d["x"]), signed(d["y"], d["interval"]), d["word"]) for d in data],
        {},
        "On the dashed line a claim holds exactly. A gain of +30 % is 1.3 times as fast, or 30 % less. Claims that no "
        "run tests are in the table below, with what differs.",
    )


def page(judged: Sequence[Entry], vocab: dict, subjects: str = "") -> str:
    """Markdown of site/generated/claims.md; `subjects` says what our runs are of."""
    counts = {word: sum(entry.verdict.word == word for entry in judged) for word in WORDS}
    chart = scatter(judged)
    lines = [
        "---\nhide: [navigation, toc]\nsearch: {exclude: true}\n---",
        "",
        f"<!-- {NOTE.format(source='papers.yaml and results/')} -->",
        "",
        "# Claimed against measured",
        "",
        f"{sum(entry.paper is not None for entry in judged)} numbers printed in papers of the catalogue, and "
        f"{sum(entry.paper is None for entry in judged)} from elsewhere ({FOUNDING} among them), each with what our "
        "runs say. A run tests a claim only if it names it; *not comparable* is the default, and says what differs. "
        "Ratios may be judged on other hardware and say so; absolute times never. "
        "[Verdicts as a feed](data/verdicts.xml).",
        "",
        subjects,
        "",
        "| Verdict | Means | Claims |",
        "|---|---|---:|",
        *(f"| {word} | {meaning} | {counts[word]} |" for word, meaning in WORDS.items()),
        "",
        charts.figure(chart) if chart else charts.missing("Claims tested by a run", "make bench"),
        "",
        "## All claims",
        "",
        sheet("claims", COLUMNS, [line(entry) for entry in judged], FACETS),
        "",
        charts.loaders("claims") + '<script defer src="../javascripts/sheet.js"></script>',
    ]
    return "\n".join(lines) + "\n"


def line(entry: Entry) -> Line:
    """A claim in the table."""
    v = entry.verdict
    who = h(entry.who) if entry.paper is None else anchor(entry.who.split(":")[0], f"papers/{entry.paper}.html")
    run = f' <a href="runs.html#{h(v.run["run_id"])}">run</a>' if v.run else ""
    cells = [
        (who, None),
        (h(entry.metric), None),
        (h(entry.setting), None),
        (h(entry.numbers), None),
        ("-" if entry.claimed is None else signed(entry.claimed), entry.claimed),
        ("-" if v.measured is None else signed(v.measured, v.interval), v.measured),
        (f"<b>{h(v.word)}</b>" if v.run else h(v.word), None),
        (h("; ".join(v.reasons)) + run, None),
        (entry.printed, None),
        (h(entry.hardware), None),
    ]
    facets = {"verdict": v.word, "family": entry.family, "metric": entry.metric, "hardware": entry.hardware}
    return Line(f"claim_{entry.key.replace('/', '_')}", facets, cells)


def script(judged: Sequence[Entry]) -> str:
    """The specification of the scatter."""
    return charts.script([chart for chart in [scatter(judged)] if chart])


def feed(judged: Sequence[Entry], site: str) -> str:
    """verdicts.xml: every verdict that a run gave, the newest first, as Atom. A new run's verdict is a new item."""
    given = sorted((e for e in judged if e.verdict.run), key=lambda e: e.verdict.run["created"], reverse=True)
    items = [
        {
            "id": uuid.uuid5(
                uuid.NAMESPACE_URL, f"{export.FEEDS['verdicts.xml']}/{entry.key}/{entry.verdict.run['run_id']}"
            ).urn,
            "title": f"{entry.verdict.word.capitalize()}: {entry.who}, {entry.setting}",
            "url": f"{site}/generated/claims.html#claim_{entry.key.replace('/', '_')}",
            "authors": [],
            "date": entry.verdict.run["created"],
            "tags": [entry.verdict.word],
            "summary": "Claimed "
            + (entry.numbers if entry.claimed is None else signed(entry.claimed))
            + ("" if entry.verdict.measured is None else f", measured {signed(entry.verdict.measured)}")
            + f"; run {entry.verdict.run['run_id']}.",
        }
        for entry in given
    ]
    return export.atom_feed(items, site, f"{export.NAME}: claimed against measured", "verdicts.xml")
