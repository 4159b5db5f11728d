"""Charts of quality against the rate of pruning, and against what it was calibrated on.

A function gives a chart, or None where no run has what it needs.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from reference.bench.results import percent
from reference.request import WITHOUT_DATA
from scripts.charts import MARKS, Chart, colour_and_shape, dimmed, quantity, spec, tooltips
from scripts.figures import interval, measured
from scripts.runs import Row

# Metric -> its name and digits. Of those that runs hold these are drawn, so that pages of hundreds of runs stay light;
# the others stand in the table of all runs.
METRICS = {
    "prediction_error": ("error of the prediction", 3),
    "weighted_prediction_error": ("error, early steps count more", 3),
    "psnr": ("PSNR to the dense picture, dB", 1),
    "feature_cosine": ("feature cosine to the dense picture", 3),
    "kernel_distance": ("kernel distance to the drawings", 4),
    "retrieval_top5_seen": ("prompt among the first 5, seen names", 2),
    "retrieval_top5_unseen": ("prompt among the first 5, unseen names", 2),
    "agreement": ("agreement between draws of data", 2),
}
DIGITS = dict(METRICS.values())

# Lines of criteria: ten of either, so that no two of the suite look alike.
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [10, 2], [4, 4, 1, 4], [3, 1], [12, 4], [6, 2, 1, 2, 1, 2]]
SHAPES = [*MARKS.values(), "triangle-left", "wedge", "arrow"]


def curves(rows: Iterable[Row]) -> Chart | None:
    """Quality against the rate: a panel a granularity, a line a criterion; and what another training's quality is."""
    rows = list(rows)
    return _lines(
        measured(rows, "quality"),
        ("curves", "Rate curves", "quality against the share of units removed, for each granularity."),
        panel=lambda row: row.unit,
        who=("criterion", lambda row: ", ".join(filter(None, [row.criterion, row.scope]))),
        again=measured(rows, "quality-second-seed"),
    )


def components(rows: Iterable[Row]) -> Chart | None:
    """Quality against the rate where one component alone is pruned: a panel a component, a line a granularity."""
    return _lines(
        measured(rows, "quality-components"),
        (
            "components",
            "Components, each pruned alone",
            "quality against the share of its units removed, by component.",
        ),
        panel=lambda row: row.run["config"]["component"].replace("_", "-"),
        who=("unit", lambda row: row.unit),
    )


def calibration(rows: Iterable[Row]) -> Chart | None:
    """Error and agreement against the number of calibration prompts; criteria that look at no data are points."""
    return _lines(
        measured(rows, "calibration"),
        ("calibration", "Calibration data", "the error that is left, and agreement, by the number of prompts."),
        panel=lambda row: f"{row.unit} {percent(row.amount)}",
        who=("criterion", lambda row: ", ".join(filter(None, [row.criterion, row.scope]))),
        along=PROMPTS,
    )


class Along(NamedTuple):
    """What a chart has along x: name in the table, title, a run's value, that in words, Vega's options, a note."""

    name: str
    title: str
    value: Callable[[Row], float]
    text: Callable[[float], str]
    options: dict
    note: str


RATE = Along(
    "rate",
    "share of the units removed",
    lambda row: row.run["achieved"]["unit_rate"],
    percent,
    {"axis": {"format": ".0%", "tickCount": 5}, "scale": {"domain": [0, 1]}},
    "prompts. The dotted line, where there is one, is the floor: the dense model drawn from other noise. A kernel "
    "distance is an unbiased estimate: one below 0 is not told from 0.",
)
PROMPTS = Along(
    "prompts",
    "prompts to calibrate on",
    lambda row: 0 if row.criterion in WITHOUT_DATA else row.run["config"]["calibration"]["prompts"],
    str,
    {"axis": {"values": [0, 2, 8, 32, 128], "format": "d"}, "scale": {"type": "symlog"}},
    "the pictures of all seeds, of the agreement over layers. Criteria that look at no data stand at 0.",
)


def _lines(
    rows: list[Row],
    names: tuple[str, str, str],
    panel: Callable[[Row], str],
    who: tuple[str, Callable[[Row], str]],
    along: Along = RATE,
    again: Iterable[Row] = (),
) -> Chart | None:
    """`names`: of the chart, its title, its description; `who`: what the lines are, and of which a run is one.

    `again`: runs of the same models trained with another seed, whose figures are level lines.
    """
    levels = {
        (row.model, quality["metric"]): _short(quality["value"]) for row in again for quality in row.run["quality"]
    }
    data = [
        {
            "run": row.id, "unit": row.unit, "model": row.model, "panel": panel(row), "who": who[1](row),
            "x": along.value(row), "metric": METRICS[quality["metric"]][0], "key": quality["metric"],
            "y": _short(quality["value"]), "y1": _short(quality["ci95"][0]), "y2": _short(quality["ci95"][1]),
            "floor": quality.get("floor"), "again": levels.get((row.model, quality["metric"])),
        }
        for row in rows
        for quality in row.run["quality"]
        if quality["metric"] in METRICS
    ]  # fmt: skip
    if not data:
        return None
    metrics = [METRICS[key][0] for key in METRICS if any(d["key"] == key for d in data)]
    models = list(dict.fromkeys(d["model"] for d in data))
    start = METRICS["psnr"][0] if METRICS["psnr"][0] in metrics else metrics[0]
    units = colour_and_shape([d["unit"] for d in data])
    every = list(dict.fromkeys(d["who"] for d in data))
    line = {"field": "who", "type": "nominal", "title": who[0]}
    dash, shape = (
        line | {"scale": {"domain": every, "range": [kinds[i % len(kinds)] for i in range(len(every))]}}
        for kinds in (DASHES, SHAPES)
    )
    colour = units["color"] | {"legend": None}
    if who[0] == "unit":  # its own colour and mark tell the lines apart
        dash, shape, colour = {"value": [1, 0]}, units["shape"], units["color"]
    x = quantity("x", along.title, **along.options)
    y = quantity("y", None)
    same = {"x": x, "color": colour, "opacity": dimmed("who"), "detail": [{"field": "who"}]}
    level = {"type": "line", "color": "currentColor", "opacity": 0.6}
    drawn = [("floor", [2, 3])] + ([("again", [8, 3, 2, 3])] if levels else [])
    point = {"type": "point", "filled": True, "size": 60, "cursor": "pointer"}
    tips = tooltips(
        unit="removed", x=along.name, who=who[0], metric="figure", y="value", y1="from", y2="to", run="run id"
    )
    layers = [
        *(
            {
                "mark": level | {"strokeDash": dashes},
                "transform": [{"filter": f"isValid(datum.{name})"}],
                "encoding": {"x": x, "y": y | {"field": name}},
            }
            for name, dashes in drawn
        ),
        {"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": same | {"y": y, "strokeDash": dash}},
        {"mark": "rule", "encoding": same | {"y": y | {"field": "y1"}, "y2": {"field": "y2"}}},
        {"mark": point, "encoding": same | {"y": y, "shape": shape, "tooltip": tips}},
    ]
    panels = list(
        dict.fromkeys(
            d["panel"] for d in sorted(data, key=lambda d: units["color"]["scale"]["domain"].index(d["unit"]))
        )
    )
    return Chart(
        names[0],
        names[1],
        spec(
            f"{len({d['run'] for d in data})} runs: {names[2]}",
            data,
            params=[{"name": n, "value": v} for n, v in (("metric", start), ("model", models[0]), ("who", "all"))],
            transform=[{"filter": "datum.metric == metric && datum.model == model"}],
            facet={"field": "panel", "type": "nominal", "title": None, "sort": panels},
            columns=2,
            resolve={"axis": {"x": "independent", "y": "independent"}},  # none where a row has one panel only
            spec={"width": 270, "height": 200, "layer": layers},
        ),
        ("Model", "Removed", who[0].capitalize(), along.name.capitalize(), "Figure", "Value (95 %)", "Floor"),
        [
            (d["model"], d["panel"], d["who"], along.text(d["x"]), d["metric"], *_cells(d))
            for d in sorted(data, key=lambda d: (d["model"], d["panel"], d["who"], d["key"], d["x"]))
        ],
        {"metric": ("Figure", metrics), "model": ("Model", models), "who": (who[0].capitalize(), ["all", *every])},
        f"Bars are 95 % bootstrap intervals over {along.note}"
        + " The line of dashes and dots: the same training with another seed." * bool(levels),
    )


def _cells(d: dict) -> tuple[str, str]:
    """Value with its interval, and the floor, of a point."""
    digits = DIGITS[d["metric"]]
    floor = "-" if d["floor"] is None else f"{d['floor']:.{digits}f}"
    return interval([d["y"], d["y1"], d["y2"]], digits), floor


def _short(value: float) -> float:
    """Four digits: what a page loads is less by half."""
    return float(f"{value:.4g}")
