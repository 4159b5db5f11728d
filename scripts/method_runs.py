"""What the published runs say about a criterion or an entry: comparisons, tables with bars, curves over the rate.

Runs are compared inside a *cell*: one suite, model, granularity and rate, nothing trained afterwards. Of a criterion
with several scopes the best one counts. Two errors differ here if their 95 % intervals do not overlap.
"""

from collections import defaultdict
from typing import NamedTuple

import yaml

from reference.bench import results
from reference.bench.device import ROOT
from reference.request import WITHOUT_DATA
from scripts import charts, quality_runs
from scripts import runs as run_rows
from scripts.evidence import PUBLISHED
from scripts.palette import variable
from scripts.text import h

SUITES = ("engine", "quality", "embedded")  # the order in which pages show them
ERROR = "prediction_error"


class Cell(NamedTuple):
    """What runs that may be compared have in common."""

    suite: str
    model: str
    granularity: str
    amount: float

    def __str__(self) -> str:
        rate = "" if ":" in self.granularity else f", {results.percent(self.amount)}"
        return f"{self.granularity}{rate}"


def published() -> dict[str, list[dict]]:
    """Suite -> runs of the published devices: of every model the newest session, failures included.

    The quality suite has many protocols and is resumed; its own rule says which runs of the rate curves count.
    """
    devices = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    found = {"quality": quality_runs.of_protocol(run_rows.collect(), "quality")}
    for suite in ("engine", "embedded"):
        runs = [run for device in devices.get(suite, []) for run in results.read(ROOT / "results" / suite / device)]
        runs = [run for run in runs if run_rows.protocol_of(run) == suite]
        models = dict.fromkeys(run["subject"]["model"] for run in runs)
        newest = [results.newest([run for run in runs if run["subject"]["model"] == model]) for model in models]
        found[suite] = [run for session in newest for run in session]
    return {suite: found[suite] for suite in SUITES}


def dense_of(run: dict, runs: list[dict]) -> dict:
    """The dense run that a run is compared with; of a resumed session the one that is left of its model."""
    dense = [r for r in runs if r["subject"]["is_baseline"] and r["subject"]["model"] == run["subject"]["model"]]
    return next((r for r in dense if r["run_id"] == run["subject"]["baseline_run"]), dense[-1])


def criterion(run: dict) -> str:
    """The criterion of a run; magnitude where the protocol leaves it at the default."""
    return run["config"].get("criterion", "magnitude")


def metric(run: dict, name: str) -> dict | None:
    """One figure of a run: value, ci95, n."""
    return next((quality for quality in run["quality"] if quality["metric"] == name), None)


def cells(published: dict[str, list[dict]]) -> dict[Cell, list[dict]]:
    """Cell -> the best run of each criterion, the lowest prediction error first."""
    best: dict[Cell, dict[str, dict]] = defaultdict(dict)
    for suite, runs in published.items():
        for run in runs:
            config = run["config"]
            if run["status"] != "ok" or run["subject"]["is_baseline"] or run["achieved"]["recovery_seconds"]:
                continue
            if metric(run, ERROR) is None:
                continue
            amount = config.get("amount") or run["achieved"]["unit_rate"]
            here = best[Cell(suite, run["subject"]["model"], config["granularity"], round(amount, 3))]
            other = here.get(criterion(run))
            if other is None or metric(run, ERROR)["value"] < metric(other, ERROR)["value"]:
                here[criterion(run)] = run
    return {cell: sorted(runs.values(), key=lambda r: metric(r, ERROR)["value"]) for cell, runs in best.items()}


def apart(one: dict, other: dict) -> bool:
    """Whether the intervals of two runs' errors do not overlap, the first being the lower."""
    return metric(one, ERROR)["ci95"][1] < metric(other, ERROR)["ci95"][0]


def lower(one: dict, other: dict) -> bool:
    """Whether the first run's error is clearly the lower: by interval, and in each seed where both have seeds.

    The interval holds no other calibration, so each seed must say the same.
    """
    seeds = zip(metric(one, ERROR).get("per_seed", []), metric(other, ERROR).get("per_seed", []), strict=False)
    return apart(one, other) and all(a < b for a, b in seeds)


class Verdict(NamedTuple):
    """How a criterion's error in a cell stands to the yardstick's."""

    cell: Cell
    word: str  # better, no difference, worse
    errors: str  # `0.494 against 0.836`
    place: int  # among the criteria of the cell


WORDS = ("better", "no difference", "worse")


def verdicts(name: str, found: dict[Cell, list[dict]]) -> list[Verdict]:
    """A verdict for each cell that holds the criterion and its yardstick, by the lowest rate first.

    The yardstick is magnitude, or random for the criteria without data. No difference: not `lower` either way.
    """
    yardstick, judged = "random" if name in WITHOUT_DATA else "magnitude", []
    for cell, runs in sorted(found.items(), key=lambda item: item[0].amount):
        by_name = {criterion(run): run for run in runs}
        if name == yardstick or name not in by_name or yardstick not in by_name:
            continue
        own, other = by_name[name], by_name[yardstick]
        word = WORDS[0] if lower(own, other) else WORDS[2] if lower(other, own) else WORDS[1]
        errors = " against ".join(f"{metric(run, ERROR)['value']:.3f}" for run in (own, other))
        judged.append(Verdict(cell, word, errors, 1 + list(by_name).index(name)))
    return judged


def verdict_table(judged: list[Verdict], found: dict[Cell, list[dict]]) -> list[str]:
    """Markdown: a row a suite, model and granularity; under each word the rates that it is true of."""
    rows = ["| Unit | Model, suite | " + " | ".join(map(str.capitalize, WORDS)) + " | Place |", "|---" * 6 + "|"]
    for suite, model, granularity in sorted({verdict.cell[:3] for verdict in judged}, key=_by_unit):
        own = [verdict for verdict in judged if verdict.cell[:3] == (suite, model, granularity)]
        cells = ["<br>".join(f"{_rate(v.cell)}{v.errors}" for v in own if v.word == word) or "-" for word in WORDS]
        places = sorted({verdict.place for verdict in own})
        of = max(len(found[verdict.cell]) for verdict in own)
        place = f"{places[0]} of {of}" if len(places) == 1 else f"{places[0]} to {places[-1]} of {of}"
        rows.append(f"| {granularity} | `{model}`, {suite} | {' | '.join(cells)} | {place} |")
    return rows


def _by_unit(cell: tuple) -> tuple:
    suite, model, granularity, *rate = cell
    return list(charts.MARKS).index(charts.pattern(granularity)), model, suite, *rate


def _rate(cell: Cell) -> str:
    return "" if ":" in cell.granularity else f"{results.percent(cell.amount)}: "


def figure(run: dict) -> str:
    """Prediction error with its interval."""
    return results.value(metric(run, ERROR), 3)


def bars(cell: Cell, runs: list[dict], mark: str = "", link: str = "{}.html") -> str:
    """One cell as a table in HTML, the lowest error first, each row with a bar and its interval; `mark` stands out."""
    scale = max(1.0, *(metric(run, ERROR)["ci95"][1] for run in runs))
    unit = f"var({variable(cell.granularity)})"
    rows = []
    for run in runs:
        error, name = metric(run, ERROR), criterion(run)
        left, value, right = (100 * x / scale for x in (error["ci95"][0], error["value"], error["ci95"][1]))
        own = ' class="own"' if name == mark else ""
        data = "no" if name in WITHOUT_DATA else "yes"
        rows.append(
            f'<tr{own}><th scope="row"><a href="{link.format(h(name))}">{h(name)}</a></th>'
            f"<td>{h(figure(run))}</td>"
            f'<td class="bar" aria-hidden="true"><svg viewBox="0 0 100 12" preserveAspectRatio="none">'
            f'<rect width="{value:.1f}" height="12" fill="{unit if own or not mark else "var(--other-unit)"}"/>'
            f'<path d="M{left:.1f} 6H{right:.1f}" stroke="currentColor" stroke-width="2"/></svg></td>'
            f"<td>{h(run['config'].get('scope', 'layer'))}</td><td>{data}</td>"
            f"<td>{run['achieved']['prune_seconds']:.1f} s</td></tr>"
        )
    head = '<th>Criterion</th><th>Prediction error (95 %)</th><th aria-hidden="true"></th>'
    head += "<th>Ranked within</th><th>Data</th><th>Scored and cut in</th>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{h(cell)}"><table class="bars">'
        f"<caption>{h(cell)}: <code>{h(cell.model)}</code>, {h(cell.suite)} suite</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


class Line(NamedTuple):
    """One line of a chart: a name and points (rate, value, low, high)."""

    name: str
    points: list[tuple[float, float, float, float]]
    own: bool


def curve(
    title: str, axis: str, lines: list[Line], granularity: str, reference: tuple[str, float] | None = None
) -> str:
    """A chart over the rate as SVG in the colours of the page: own lines coloured, others grey, names at the ends."""
    points = [point for line in lines for point in line.points]
    top = max([high for *_, high in points] + ([reference[1]] if reference else []))
    low = min([0.0] + [low for *_, low, _ in points])
    width, height, left, bottom = 320, 190, 34, 30

    def x(rate: float) -> float:
        return left + rate * (width - left - 78)

    def y(value: float) -> float:
        return 12 + (top - value) / (top - low) * (height - 12 - bottom)

    step = next(s for s in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20) if (top - low) / s <= 6)
    ticks = [i * step for i in range(int(low / step), int(top / step) + 1)]
    parts = [f'<path class="axis" d="M{left} 8V{height - bottom}H{x(1):.0f}"/>']
    parts += [f'<text class="tick" x="{left - 4}" y="{y(t) + 3:.1f}" text-anchor="end">{t:g}</text>' for t in ticks]
    parts += [
        f'<text class="tick" x="{x(r):.1f}" y="{height - bottom + 12}" text-anchor="middle">{r:.0%}</text>'
        for r in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts.append(f'<text class="tick" x="{x(0.5):.0f}" y="{height - 4}" text-anchor="middle">{h(axis)}</text>')
    if reference:
        parts.append(f'<path class="floor" d="M{left} {y(reference[1]):.1f}H{x(1):.0f}"/>')
        parts.append(f'<text class="tick" x="{x(1) + 4:.0f}" y="{y(reference[1]) + 3:.1f}">{h(reference[0])}</text>')
    taken: list[float] = [y(reference[1])] if reference else []
    for line in sorted(lines, key=lambda line: not line.own):
        colour = f"var({variable(granularity)})" if line.own else "var(--other-unit)"
        path = "M" + "L".join(f"{x(r):.1f} {y(v):.1f}" for r, v, _, _ in line.points)
        spread = "".join(f"M{x(r):.1f} {y(a):.1f}V{y(b):.1f}" for r, _, a, b in line.points)
        dots = "".join(
            f'<circle cx="{x(r):.1f}" cy="{y(v):.1f}" r="2.6" fill="{colour}"/>' for r, v, _, _ in line.points
        )
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{2 if line.own else 1}"/>'
            f'<path d="{spread}" fill="none" stroke="{colour}" stroke-width="1"/>{dots}'
        )
        end = line.points[-1]
        if all(abs(y(end[1]) - other) > 9 for other in taken):  # a name that would cover another is in the table only
            taken.append(y(end[1]))
            parts.append(f'<text x="{x(end[0]) + 6:.1f}" y="{y(end[1]) + 3:.1f}">{h(line.name)}</text>')
    names = ", ".join(line.name for line in lines)
    label = f"{title} over the rate: {names}. The table holds the same numbers."
    return (
        f'<figure class="curve"><svg viewBox="0 0 {width} {height}" role="img" aria-label="{h(label)}">'
        f"{''.join(parts)}</svg><figcaption>{h(title)}</figcaption></figure>"
    )


def error_curves(found: dict[Cell, list[dict]], granularities: tuple[str, ...], mark: str = "") -> list[str]:
    """Prediction error over the rate, a chart for each suite, model and granularity with three rates or more."""
    series: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for cell, runs in sorted(found.items(), key=lambda item: item[0].amount):
        if cell.granularity in granularities:
            for run in runs:
                error = metric(run, ERROR)
                series[cell[:3]][criterion(run)].append((cell.amount, error["value"], *error["ci95"]))
    charts = []
    for (suite, model, granularity), by_name in series.items():
        lines = [Line(name, points, name == mark or not mark) for name, points in by_name.items() if len(points) > 2]
        if lines and (not mark or any(line.own for line in lines)):
            title = f"Prediction error, {granularity}, {model}, {suite} suite"
            charts.append(curve(title, "units removed", lines, granularity))
    return charts


def ranked(found: dict[Cell, list[dict]], mark: str = "") -> list[str]:
    """The cells as tables with bars: of each suite, model and unit the rate nearest to a half, the others folded."""
    shown = {}
    for cell in found:
        near = shown.get(cell[:3])
        if near is None or abs(cell.amount - 0.5) < abs(near.amount - 0.5):
            shown[cell[:3]] = cell
    folded = [bars(cell, found[cell], mark) for cell in sorted(found.keys() - shown.values(), key=_by_unit)]
    tables = [bars(cell, found[cell], mark) for cell in sorted(shown.values(), key=_by_unit)]
    if folded:
        tables.append(f"<details><summary>{len(folded)} tables of other rates</summary>{''.join(folded)}</details>")
    return tables
