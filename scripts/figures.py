"""What each chart shows, read from the rows of runs: fidelity against speed, nominal against realised, criteria, rates,
2:4 products. A function gives a chart, or None where no run has what it needs.
"""

from collections.abc import Iterable, Sequence

from scripts.charts import (
    MARKS,
    Chart,
    colour_and_shape,
    cross,
    dimmed,
    figure,
    identity,
    missing,
    quantity,
    spec,
    tooltips,
)
from scripts.runs import Row, phantom

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


def measured(rows: Iterable[Row], *protocols: str) -> list[Row]:
    """Current runs of some protocols that went well, without their dense baselines; of several seeds the first."""
    return [
        row
        for row in rows
        if row.protocol in protocols
        and row.state == "current"
        and row.run["status"] == "ok"
        and not row.run["subject"]["is_baseline"]
        and not row.run["config"].get("seed")
    ]


def interval(values: Sequence[float], digits: int, unit: str = "") -> str:
    """`1.23x (1.20 to 1.26)`."""
    value, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{value}{unit} ({low} to {high})"


def percent(share: float | None) -> str:
    """A rate with its sign, or a dash."""
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def choices(spec_params: list, transforms: list, data: Sequence[dict], fields: dict[str, str]) -> dict:
    """Adds a parameter and its filter for every field with several values; the choices of the page."""
    found = {}
    for field, label in fields.items():
        values = every(data, field)
        if len(values) > 2:
            spec_params.append({"name": field, "value": "all"})
            transforms.append({"filter": f"{field} == 'all' || datum.{field} == {field}"})
            found[field] = (label, values)
    return found


def every(data: Sequence[dict], field: str) -> list[str]:
    """`all`, and the values of a field."""
    return ["all", *dict.fromkeys(row[field] for row in data)]


PLACES = {"model": "Model", "device": "Device"}


def pareto(rows: Iterable[Row]) -> Chart | None:
    """Fidelity against realised speed-up of the embedded runs, with the front that no run is above."""
    data = []
    for row in measured(rows, "embedded"):
        psnr, speed = row.quality("psnr"), row.speed
        if psnr and speed:
            data.append(
                {
                    "run": row.id,
                    "unit": row.unit,
                    "model": row.model,
                    "device": row.machine,
                    "what": row.label,
                    "short": percent(row.amount) + (f", {row.recovery}" if row.recovery != "none" else ""),
                    "x": speed["speedup"], "x1": speed["speedup_ci95"][0], "x2": speed["speedup_ci95"][1],
                    "y": psnr["value"], "y1": psnr["ci95"][0], "y2": psnr["ci95"][1],
                    "pictures": speed["pictures"],
                    "phantom": "yes" if phantom(row, speed["speedup"]) else "no",
                }
            )  # fmt: skip
    if not data:
        return None
    for one in data:
        one["standing"] = standing(one, data)
    x = quantity("x", f"realised speed-up over dense, {data[0]['pictures']} pictures a batch")
    y = quantity("y", "PSNR to the dense picture, dB")
    tips = tooltips(what="run", x="speed-up", y="PSNR, dB", standing="standing", phantom="phantom", run="run id")
    front = {
        "transform": [{"filter": "datum.standing == 'on the front'"}],
        "mark": {"type": "line", "interpolate": "step-before", "color": "currentColor", "opacity": 0.35},
        "encoding": {"x": x, "y": y, "order": {"field": "x"}},
    }
    params, transforms = [{"name": "unit", "value": "all"}], []
    found = {"unit": ("Removed", every(data, "unit"))} | choices(params, transforms, data, PLACES)
    layers = {"layer": [front, *cross(data, x, y, tips, "short")], "params": params, "transform": transforms}
    return Chart(
        "pareto",
        "Fidelity against realised speed-up",
        spec(
            f"{len(data)} pruned models: PSNR to the dense picture against the speed-up on the clock.", data, **layers
        ),
        ("Run", "Speed-up (95 %)", "PSNR, dB (95 %)", "Standing", "Phantom"),
        [
            (
                d["what"],
                interval([d["x"], d["x1"], d["x2"]], 2, "x"),
                interval([d["y"], d["y1"], d["y2"]], 1),
                d["standing"],
                d["phantom"],
            )
            for d in sorted(data, key=lambda d: -d["y"])
        ],
        found,
        "Up and to the right is better. Bars are 95 % bootstrap intervals, over pictures (vertical) and over timed "
        "turns (horizontal). The line is the front: no run is above and to the right of a point on it.",
    )


def standing(one: dict, data: Sequence[dict]) -> str:
    """On the front, beaten by another run in both figures, or only within the intervals."""
    rivals = [d for d in data if (d["model"], d["device"]) == (one["model"], one["device"]) and d is not one]
    if not any(d["x"] >= one["x"] and d["y"] >= one["y"] for d in rivals):
        return "on the front"
    sure = any(d["x1"] > one["x2"] and d["y1"] > one["y2"] for d in rivals)
    return "beaten, intervals apart" if sure else "beaten, intervals overlap"


def nominal(rows: Iterable[Row]) -> Chart | None:
    """What counting operations promises against what the clock says; phantoms hollow."""
    data = []
    for row in measured(rows, "embedded", "latency"):
        for speed in row.run["speed"] if row.nominal else []:
            low, high = speed["speedup_ci95"]
            work = f"{speed['pictures']} pictures" if "pictures" in speed else speed.get("mode", "eager")
            data.append(
                {
                    "run": row.id, "unit": row.unit, "what": row.label,
                    "model": row.model, "device": row.machine,
                    "work": "1 picture" if work == "1 pictures" else work,
                    "x": row.nominal, "x1": row.nominal, "x2": row.nominal,
                    "y": speed["speedup"], "y1": low, "y2": high,
                    "phantom": "yes" if phantom(row, speed["speedup"]) else "no",
                    "realised": (speed["speedup"] - 1) / (row.nominal - 1) if row.nominal > 1.005 else None,
                }
            )  # fmt: skip
    if not data:
        return None
    x, y = quantity("x", "nominal speed-up (operations left)"), quantity("y", "realised speed-up (clock)")
    tips = tooltips(
        what="run", work="timed", x="nominal", y="realised", phantom="phantom", device="device", run="run id"
    )
    layers = cross(data, x, y, tips)
    points = layers[-1]
    points["mark"] |= {"strokeWidth": 2}
    points["encoding"] |= {
        "stroke": points["encoding"]["color"],
        "fillOpacity": {"condition": {"test": "datum.phantom == 'yes'", "value": 0}, "value": 1},
    }
    params, transforms = [{"name": "unit", "value": "all"}], []
    found = {"unit": ("Removed", every(data, "unit"))}
    found |= choices(params, transforms, data, PLACES | {"work": "Timed with"})
    high = max(max(d["x"] for d in data), max(d["y2"] for d in data))
    layers = [identity(1, high, x["title"], y["title"]), *layers]
    return Chart(
        "nominal",
        "Nominal against realised",
        spec(
            f"{len(data)} timings: the speed-up that counting operations promises against that on the clock.",
            data,
            layer=layers,
            params=params,
            transform=transforms,
        ),
        ("Run", "Model", "Device", "Timed with", "Nominal", "Realised (95 %)", "Share of the gain", "Phantom"),
        [
            (
                d["what"],
                d["model"],
                d["device"],
                d["work"],
                f"{d['x']:.2f}x",
                interval([d["y"], d["y1"], d["y2"]], 2, "x"),
                percent(d["realised"]),
                d["phantom"],
            )
            for d in data
        ],
        found,
        "On the dashed line all of the promised gain arrives. Hollow points are phantoms: less than half of it does. "
        "Bars are 95 % intervals over timed turns.",
    )


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
            "title": {"text": group, "anchor": "start", "fontSize": 12, "color": "currentColor"},
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
        ("Model", "What", "Layer or block", "At", "Error (95 %)"),
        [(d["model"], d["kind"], d["layer"], d["x"], interval([d["value"], d["low"], d["high"]], 3)) for d in data],
        {"model": ("Model", models), "kind": ("Removed" if protocol == LAYERS else "Figure", kinds)},
        "Everything else stays dense. Darker is worse: the error of the prediction, or of the picture, with that one "
        "layer pruned at that rate, or that one block left out at those steps.",
    )


LAYERS = "quality-layers"
DAMAGE = {
    "prediction_error_of_block": "error of the prediction at these steps",
    "picture_error_of_block": "error of the picture",
}


def shapes(rows: Iterable[Row]) -> Chart | None:
    """2:4 products against dense ones: shape by rows of the input, for a data type, backend and mode."""
    data = []
    for row in measured(rows, "kernels"):
        asked = row.run["config"]["asked"]
        kind = f"{asked['dtype']}, {asked['backend']}, {'compiled' if asked['compiled'] else 'eager'}"
        for speed in row.run["speed"]:
            low, high = speed["speedup_ci95"]
            shape = f"{asked['outputs']} x {asked['inputs']}"
            data.append(
                {
                    "run": row.id, "shape": shape, "rows": speed["rows"], "kind": kind, "device": row.machine,
                    "x": speed["speedup"], "x1": low, "x2": high, "shown": f"{speed['speedup']:.2f}",
                }
            )  # fmt: skip
    if not data:
        return None
    kinds = list(dict.fromkeys(d["kind"] for d in data))
    order = sorted({d["shape"] for d in data}, key=lambda shape: [*map(int, shape.split(" x "))])
    x = {"field": "rows", "type": "ordinal", "title": "rows of the input"}
    y = {"field": "shape", "type": "nominal", "title": "outputs x inputs", "sort": order}
    scale = {"scheme": "blueorange", "domain": [0.4, 1, 1.6], "clamp": True, "reverse": True}
    colour = {"field": "x", "type": "quantitative", "title": "speed-up over dense", "scale": scale}
    tips = tooltips(shape="shape", rows="rows", x="speed-up", x1="from", x2="to", device="device", run="run id")
    params, transforms = [{"name": "kind", "value": kinds[0]}], [{"filter": "datum.kind == kind"}]
    found = {"kind": ("Product", kinds)} | choices(params, transforms, data, {"device": "Device"})
    word = {"type": "text", "fontSize": 10}
    on_dark = {"condition": {"test": "datum.x > 1.35 || datum.x < 0.65", "value": "white"}, "value": "black"}
    layers = [
        {"mark": "rect", "encoding": {"x": x, "y": y, "color": colour, "tooltip": tips}},
        {"mark": word, "encoding": {"x": x, "y": y, "text": {"field": "shown"}, "color": on_dark}},
    ]  # fmt: skip
    return Chart(
        "shapes",
        "2:4 products by shape",
        spec(
            f"{len(data)} timings of a packed 2:4 product against the dense one.",
            data,
            layer=layers,
            params=params,
            transform=transforms,
            height={"step": 18},
        ),
        ("Shape", "Rows", "Product", "Device", "Speed-up (95 %)"),
        [(d["shape"], d["rows"], d["kind"], d["device"], interval([d["x"], d["x1"], d["x2"]], 2, "x")) for d in data],
        found,
        "Blue is faster than the dense product, orange slower.",
    )


def shown(chart: Chart | None, title: str, command: str, why: str = "No run of this kind is published yet.") -> str:
    """A chart, or what would make it."""
    return figure(chart) if chart else missing(title, command, why)
