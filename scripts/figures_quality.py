"""Charts of what pruning costs: the error of every criterion, quality by rate, damage maps.

A function gives a chart, or None where no run has what it needs.
"""

from collections.abc import Iterable

from scripts.charts import MARKS, Chart, colour_and_shape, dimmed, quantity, spec, tooltips
from scripts.figures import interval, measured, percent
from scripts.runs import Row

# Metric -> its name, digits, and whether more is better.
METRICS = {
    "prediction_error": ("error of the prediction", 3, False),
    "weighted_prediction_error": ("error, early steps count more", 3, False),
    "psnr": ("PSNR to the dense picture, dB", 1, True),
    "ssim": ("SSIM to the dense picture", 3, True),
    "feature_cosine": ("feature cosine to the dense picture", 3, True),
    "kernel_distance": ("kernel distance to the drawings", 3, False),
    "frechet_distance": ("Fréchet distance to the drawings", 2, False),
    "retrieval_top1_seen": ("prompt found first, seen names", 2, True),
    "retrieval_top5_seen": ("prompt among the first 5, seen names", 2, True),
    "retrieval_top1_unseen": ("prompt found first, unseen names", 2, True),
    "retrieval_top5_unseen": ("prompt among the first 5, unseen names", 2, True),
}


def criteria(rows: Iterable[Row]) -> Chart | None:
    """The error of every criterion at one rate a granularity, with intervals."""
    data = []
    for row in measured(rows, "engine"):
        for metric in ("prediction_error", "weighted_prediction_error"):
            if quality := row.quality(metric):
                rate = "" if ":" in row.unit else f" {percent(row.amount)}"
                data.append(
                    {
                        "run": row.id, "unit": row.unit, "group": row.unit + rate, "metric": METRICS[metric][0],
                        "who": ", ".join(filter(None, [row.criterion, row.scope])),
                        "x": quality["value"], "x1": quality["ci95"][0], "x2": quality["ci95"][1],
                    }
                )  # fmt: skip
    if not data:
        return None
    metrics = list(dict.fromkeys(d["metric"] for d in data))
    data.sort(key=lambda d: (metrics.index(d["metric"]), d["x"]))
    units = colour_and_shape([d["unit"] for d in data])
    plain = {channel: encoding | {"legend": None} for channel, encoding in units.items()}
    ends = [0.9 * min(d["x1"] for d in data), 1.1 * max(d["x2"] for d in data)]
    x = quantity("x", "relative error, logarithmic", scale={"type": "log", "domain": ends, "nice": False})
    x |= {"axis": {"values": [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5], "format": "~g", "title": None}}
    y = {"field": "who", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 190}}
    tips = tooltips(group="removed", who="criterion", x="error", x1="from", x2="to", run="run id")
    rule = {"x": x | {"field": "x1"}, "x2": {"field": "x2"}, "y": y, "color": plain["color"]}
    layers = [
        {"mark": {"type": "rule"}, "encoding": rule},
        {"mark": {"type": "point", "filled": True, "size": 80}, "encoding": {"x": x, "y": y, **plain, "tooltip": tips}},
    ]  # fmt: skip
    groups = sorted({d["group"] for d in data}, key=lambda g: units["color"]["scale"]["domain"].index(g.split()[0]))
    panels = [
        {
            "title": {"text": group, "anchor": "start", "frame": "group", "fontSize": 12, "color": "currentColor"},
            "transform": [{"filter": f"datum.group == '{group}' && datum.metric == metric"}],
            "width": 420,
            "height": {"step": 17},
            "layer": layers,
        }
        for group in groups
    ]
    return Chart(
        "criteria",
        "Criteria at one rate a granularity",
        spec(
            f"{len(data) // len(metrics)} runs: the error of the prediction for each criterion.",
            data,
            params=[{"name": "metric", "value": metrics[0]}],
            vconcat=panels,
            spacing=14,
        ),
        ("Removed", "Criterion", "Figure", "Value (95 %)"),
        [(d["group"], d["who"], d["metric"], interval([d["x"], d["x1"], d["x2"]], 3)) for d in data],
        {"metric": ("Figure", metrics)},
        "Left is better: the relative error on a logarithmic scale, 0 is the dense model. Bars are 95 % bootstrap "
        "intervals over pictures.",
    )


# Lines of criteria: ten of either, so that no two of the suite look alike.
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [10, 2], [4, 4, 1, 4], [3, 1], [12, 4], [6, 2, 1, 2, 1, 2]]
SHAPES = [*MARKS.values(), "triangle-left", "wedge", "arrow"]


def curves(rows: Iterable[Row], protocol: str) -> Chart | None:
    """A figure of quality against the rate: a panel a granularity, a line a criterion (and recovery)."""
    data = []
    for row in measured(rows, protocol):
        for quality in row.run["quality"]:
            if quality["metric"] in METRICS and row.amount is not None:
                data.append(
                    {
                        "run": row.id, "unit": row.unit, "model": row.model, "amount": row.amount,
                        "who": ", ".join(filter(None, [row.criterion, row.scope, row.recovery.replace("none", "")])),
                        "metric": METRICS[quality["metric"]][0], "key": quality["metric"],
                        "y": quality["value"], "y1": quality["ci95"][0], "y2": quality["ci95"][1],
                        "floor": quality.get("floor"),
                    }
                )  # fmt: skip
    if not data:
        return None
    metrics = [METRICS[key][0] for key in METRICS if any(d["key"] == key for d in data)]
    models = list(dict.fromkeys(d["model"] for d in data))
    start = METRICS["psnr"][0] if METRICS["psnr"][0] in metrics else metrics[0]
    units = colour_and_shape([d["unit"] for d in data])
    who = list(dict.fromkeys(d["who"] for d in data))
    dash = {"field": "who", "type": "nominal", "title": "criterion"}
    dash |= {"scale": {"domain": who, "range": [DASHES[i % len(DASHES)] for i in range(len(who))]}}
    shape = {"field": "who", "type": "nominal", "title": "criterion"}
    shape |= {"scale": {"domain": who, "range": [SHAPES[i % len(SHAPES)] for i in range(len(who))]}}
    colour = units["color"] | {"legend": None}
    x = quantity(
        "amount", "share of the units removed", axis={"format": ".0%", "tickCount": 5}, scale={"domain": [0, 1]}
    )
    y = quantity("y", None)
    dim = dimmed("who")
    same = {"x": x, "color": colour, "opacity": dim}
    floor = {"type": "line", "strokeDash": [2, 3], "color": "currentColor", "opacity": 0.6}
    line = {"y": y, "strokeDash": dash, "detail": [{"field": "who"}]}
    tips = tooltips(
        unit="removed", amount="share", who="criterion", metric="figure", y="value", y1="from", y2="to", run="run id"
    )
    has_floor, floors = [{"filter": "isValid(datum.floor)"}], {"x": x, "y": y | {"field": "floor"}}
    layers = [
        {"mark": floor, "transform": has_floor, "encoding": floors},
        {"mark": {"type": "line", "strokeWidth": 1.6}, "encoding": same | line},
        {"mark": "rule", "encoding": same | {"y": y | {"field": "y1"}, "y2": {"field": "y2"}}},
        {
            "mark": {"type": "point", "filled": True, "size": 60, "cursor": "pointer"},
            "encoding": same | {"y": y, "shape": shape, "tooltip": tips},
        },
    ]  # fmt: skip
    return Chart(
        f"curves-{protocol}",
        f"Rate curves, {protocol} suite",
        spec(
            f"{len({d['run'] for d in data})} runs: quality against the share of units removed, for each granularity.",
            data,
            params=[{"name": n, "value": v} for n, v in (("metric", start), ("model", models[0]), ("who", "all"))],
            transform=[{"filter": "datum.metric == metric && datum.model == model"}],
            facet={"field": "unit", "type": "nominal", "title": None, "sort": units["color"]["scale"]["domain"]},
            columns=2,
            spec={"width": 280, "height": 200, "layer": layers},
        ),
        ("Model", "Removed", "Criterion", "Rate", "Figure", "Value (95 %)", "Floor"),
        [
            (
                d["model"],
                d["unit"],
                d["who"],
                percent(d["amount"]),
                d["metric"],
                interval([d["y"], d["y1"], d["y2"]], METRICS[d["key"]][1]),
                "-" if d["floor"] is None else f"{d['floor']:.{METRICS[d['key']][1]}f}",
            )
            for d in sorted(data, key=lambda d: (d["model"], d["unit"], d["who"], d["key"], d["amount"]))
        ],
        {"metric": ("Figure", metrics), "model": ("Model", models), "who": ("Criterion", ["all", *who])},
        "Bars are 95 % bootstrap intervals over pictures. The dotted line, where there is one, is the floor: the dense "
        "model drawn from other noise.",
    )


def damage(rows: Iterable[Row], protocol: str) -> Chart | None:
    """A damage map: each layer pruned alone by rate (`quality-layers`), or each block left out by steps."""
    data = []
    for row in measured(rows, protocol):
        for quality in row.run["quality"]:
            if "layer" not in quality:
                continue
            steps = "{}-{}".format(*quality["steps"]) if "steps" in quality else ""
            low, high = quality["ci95"]
            data.append(
                {
                    "run": row.id, "model": row.model, "layer": quality["layer"],
                    "kind": row.unit or DAMAGE.get(quality["metric"], quality["metric"]),
                    "x": f"steps {steps}" if steps else percent(row.amount),
                    "order": quality["steps"][0] if steps else row.amount,
                    "value": quality["value"], "low": low, "high": high,
                }
            )  # fmt: skip
    if not data:
        return None
    kinds, models = (list(dict.fromkeys(d[field] for d in data)) for field in ("kind", "model"))
    lines: dict[tuple, list[str]] = {}
    for d in sorted(data, key=lambda d: d["order"]):
        shown = f"{d['x']}: {interval([d['value'], d['low'], d['high']], 3)}"
        lines.setdefault((d["model"], d["kind"], d["layer"]), []).append(shown)
    across = {"field": "x", "type": "ordinal", "title": None, "sort": {"field": "order"}}
    across |= {"axis": {"orient": "top", "labelAngle": 0}}
    down = {"field": "layer", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}}
    # Viridis: its steps are told apart without colour as well.
    colour = {
        "field": "value",
        "type": "quantitative",
        "title": "error",
        "scale": {"scheme": "viridis", "reverse": True},
    }
    tips = tooltips(layer="layer", x="at", value="error", low="from", high="to", run="run id")
    return Chart(
        protocol,
        "Damage map: layers by rate" if protocol == LAYERS else "Damage map: blocks by steps",
        spec(
            f"{len(data)} errors: the damage that each part of the network does alone.",
            data,
            mark={"type": "rect", "cursor": "pointer"},
            encoding={"x": across, "y": down, "color": colour, "tooltip": tips},
            params=[{"name": "model", "value": models[0]}, {"name": "kind", "value": kinds[0]}],
            transform=[{"filter": "datum.model == model && datum.kind == kind"}],
            height={"step": 14},
        ),
        ("Model", "What", "Layer or block", "Error (95 %)"),
        [(*place, "; ".join(cells)) for place, cells in lines.items()],
        {"model": ("Model", models), "kind": ("Removed" if protocol == LAYERS else "Figure", kinds)},
        "Everything else stays dense. Darker is worse: the error of the prediction, or of the picture, with that one "
        "layer pruned at that rate, or that one block left out at those steps.",
    )


LAYERS = "quality-layers"
DAMAGE = {
    "prediction_error_of_block": "error of the prediction at these steps",
    "picture_error_of_block": "error of the picture",
}
