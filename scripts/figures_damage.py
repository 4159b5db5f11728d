"""Damage maps: what each layer does when it alone is pruned, and each block when it is left out at some steps."""

from collections.abc import Iterable

from reference.bench.results import percent
from scripts.charts import Chart, spec, tooltips
from scripts.figures import interval, measured
from scripts.runs import Row

LAYERS = "quality-layers"
DAMAGE = {
    "prediction_error_of_block": "error of the prediction at these steps",
    "picture_error_of_block": "error of the picture",
}


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
        "Everything else stays dense. Darker is worse: "
        + (
            "the prediction error with that one layer pruned by magnitude at that rate."
            if protocol == LAYERS
            else "the error with that one block left out at those steps, 0 being the first, from pure noise."
        ),
    )
