"""Charts of what pruning buys: fidelity against speed, nominal against realised, 2:4 products by shape.

A function gives a chart, or None where no run has what it needs.
"""

from collections.abc import Iterable, Sequence

from reference.bench.results import percent
from scripts.charts import Chart, cross, identity, quantity, spec, tooltips
from scripts.figures import choices, every, interval, measured
from scripts.runs import Row, phantom

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
        one["last"] = one["x"] > 0.7 * max(d["x2"] for d in data) + 0.3 * min(d["x1"] for d in data)
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


def delivered(rows: Iterable[Row]) -> str:
    """Which share of the nominal gain the clock gave, of masks and of units that leave the shapes, batch by batch."""
    shares: dict[str, dict[int, list[float]]] = {"masks": {}, "units that leave the shapes": {}}
    for row in measured(rows, "embedded"):
        kind = "masks" if row.unit == "weight" or ":" in row.unit else "units that leave the shapes"
        for speed in row.run["speed"] if (row.nominal or 1) > 1.005 else []:
            share = (speed["speedup"] - 1) / (row.nominal - 1)
            shares[kind].setdefault(speed["pictures"], []).append(share)
    told = [
        f"{kind} {percent(min(found))} to {percent(max(found))} with {n} picture{'s' * (n > 1)} a batch"
        for kind, by_batch in shares.items()
        for n, found in sorted(by_batch.items())
    ]
    return f"Of the gain that is promised arrived: {'; '.join(told)}." if told else ""


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
