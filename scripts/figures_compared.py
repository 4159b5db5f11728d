"""Charts that set ways of pruning side by side: criteria, trainings afterwards, pruning with another saving."""

from collections.abc import Callable, Iterable

from reference.bench.results import percent
from scripts.charts import Chart, colour_and_shape, dimmed, identity, quantity, spec, tooltips
from scripts.figures import interval, measured
from scripts.figures_quality import DIGITS, METRICS
from scripts.quality_rules import composed
from scripts.quality_runs import by_model, dense_of
from scripts.runs import Row


def criteria(rows: Iterable[Row]) -> Chart | None:
    """The error of every criterion at one rate a granularity, with intervals."""
    return _ranking(
        measured(rows, "engine"),
        ("criteria", "Criteria at one rate a granularity", "the error of the prediction for each criterion."),
        ("prediction_error", "weighted_prediction_error"),
        lambda row: ", ".join(filter(None, [row.criterion, row.scope])),
        "Left is better: the relative error on a logarithmic scale. Bars are 95 % bootstrap intervals over pictures.",
    )


def recoveries(rows: Iterable[Row]) -> Chart | None:
    """What each kind of training after pruning makes of the same pruned model, with intervals."""
    return _ranking(
        measured(rows, "quality-recovery"),
        ("recoveries", "Training after pruning", "quality after each kind of training, at equal rates and steps."),
        ("prediction_error", "psnr", "feature_cosine", "kernel_distance", "retrieval_top5_seen"),
        _trained,
        "At the same rate and after as many steps of training: one shot, then training, or pruning in rounds with "
        "training between. Bars are 95 % bootstrap intervals over prompts. A kernel distance is an unbiased estimate: "
        "one below 0 is not told from 0.",
    )


def _trained(row: Row) -> str:
    """`one shot, output`, `4 rounds (cubic), output`, `nothing`."""
    config = row.run["config"]
    if row.recovery == "none":
        return "nothing"
    rounds = f"{config['rounds']} rounds ({config['schedule']})" if config.get("rounds", 1) > 1 else "one shot"
    return f"{rounds}, {config['recovery']['loss']}"


def _ranking(
    rows: list[Row], names: tuple[str, str, str], keys: tuple[str, ...], who: Callable[[Row], str], caption: str
) -> Chart | None:
    """A panel a granularity and rate, in it a line a run, the best first by the first metric of `keys`."""
    data = []
    for row in rows:
        for key in keys:
            if quality := row.quality(key):
                rate = "" if ":" in row.unit else f" {percent(row.amount)}"
                data.append(
                    {
                        "run": row.id, "unit": row.unit, "group": row.unit + rate, "metric": METRICS[key][0],
                        "model": row.model, "who": who(row), "key": key,
                        "x": quality["value"], "x1": quality["ci95"][0], "x2": quality["ci95"][1],
                    }
                )  # fmt: skip
    if not data:
        return None
    metrics, models = (list(dict.fromkeys(d[field] for d in data)) for field in ("metric", "model"))
    data.sort(key=lambda d: (metrics.index(d["metric"]), d["x"]))
    units = colour_and_shape([d["unit"] for d in data])
    plain = {channel: encoding | {"legend": None} for channel, encoding in units.items()}
    x = quantity("x", None)
    if all(key.endswith("error") for key in keys):
        ends = [0.9 * min(d["x1"] for d in data), 1.1 * max(d["x2"] for d in data)]
        x |= {"scale": {"type": "log", "domain": ends, "nice": False}}
        x |= {"axis": {"values": [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5], "format": "~g", "title": None}}
    y = {"field": "who", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 190}}
    tips = tooltips(group="removed", who="what", metric="figure", x="value", x1="from", x2="to", run="run id")
    rule = {"x": x | {"field": "x1"}, "x2": {"field": "x2"}, "y": y, "color": plain["color"]}
    layers = [
        {"mark": {"type": "rule"}, "encoding": rule},
        {"mark": {"type": "point", "filled": True, "size": 80}, "encoding": {"x": x, "y": y, **plain, "tooltip": tips}},
    ]  # fmt: skip
    groups = sorted(
        {d["group"] for d in data}, key=lambda g: (units["color"]["scale"]["domain"].index(g.split()[0]), g)
    )
    panels = [
        {
            "title": {"text": group, "anchor": "start", "frame": "group", "fontSize": 12, "color": "currentColor"},
            "transform": [{"filter": f"datum.group == '{group}' && datum.metric == metric && datum.model == model"}],
            "width": 420,
            "height": {"step": 17},
            "layer": layers,
        }
        for group in groups
    ]
    several = {"model": ("Model", models)} if len(models) > 1 else {}
    return Chart(
        names[0],
        names[1],
        spec(
            f"{len({d['run'] for d in data})} runs: {names[2]}",
            data,
            params=[{"name": "metric", "value": metrics[0]}, {"name": "model", "value": models[0]}],
            vconcat=panels,
            spacing=14,
            resolve={"scale": {"x": "shared"}},
        ),
        ("Model", "Removed", "What", "Figure", "Value (95 %)"),
        [
            (d["model"], d["group"], d["who"], d["metric"], interval([d["x"], d["x1"], d["x2"]], DIGITS[d["metric"]]))
            for d in data
        ],
        {"metric": ("Figure", metrics)} | several,
        caption,
    )


def compositions(rows: Iterable[Row]) -> Chart | None:
    """The error with pruning and a partner against what independent errors would give."""
    own = [row for row in rows if row.protocol == "quality-composition" and row.state == "current"]
    by_id, data = {row.id: row for row in own}, []
    for model, runs in by_model([row.run for row in own]).items():
        if dense := dense_of(runs):
            for run, found in composed([dense, *runs]):
                data.append(
                    {
                        "run": run["run_id"], "unit": by_id[run["run_id"]].unit, "model": model,
                        "what": by_id[run["run_id"]].label, "partner": run["config"]["partner"],
                        "x": (found.pruned**2 + found.partner**2) ** 0.5, "y": found.both, "verdict": found.verdict,
                        "ratio": interval(found.to_independent, 2),
                    }
                )  # fmt: skip
    if not data:
        return None
    models, partners = (list(dict.fromkeys(d[field] for d in data)) for field in ("model", "partner"))
    x = quantity("x", "error of the picture if both were independent")
    y = quantity("y", "error of the picture with both")
    tips = tooltips(
        what="pruned", partner="with", x="expected", y="found", ratio="squares, found / expected", verdict="verdict"
    )
    ends = [min(min(d["x"], d["y"]) for d in data), max(max(d["x"], d["y"]) for d in data)]
    units = colour_and_shape([d["unit"] for d in data])
    mark = {"type": "point", "filled": True, "size": 110, "cursor": "pointer"}
    shown = [{"filter": "datum.model == model"}]
    layers = [
        identity(*ends, x["title"], y["title"]),
        {
            "mark": mark,
            "transform": shown,
            "encoding": units | {"x": x, "y": y, "tooltip": tips, "opacity": dimmed("partner")},
        },
    ]
    return Chart(
        "compositions",
        "Pruning with a partner",
        spec(
            f"{len(data)} pairs: the error found against the one expected of independent errors.",
            data,
            params=[{"name": "model", "value": models[0]}, {"name": "partner", "value": "all"}],
            layer=layers,
        ),
        ("Model", "Pruned", "With", "Expected", "Found", "Squares, found / expected (95 %)", "Verdict"),
        [
            (d["model"], d["what"], d["partner"], f"{d['x']:.3f}", f"{d['y']:.3f}", d["ratio"], d["verdict"])
            for d in data
        ],
        {"model": ("Model", models), "partner": ("With", ["all", *partners])},
        "On the line the errors of pruning and of the partner add as independent ones do: the savings multiply. Above "
        "it they make each other worse. The error is the root mean square over pixels and pictures.",
    )
