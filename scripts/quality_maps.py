"""Damage maps of the quality page: heat maps and their tables."""

from scripts.quality_charts import heat_map
from scripts.quality_parts import FOLDER, Files
from scripts.quality_runs import measured, percent, shown, table


def layers(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    """Layer by rate, a map for each granularity."""
    parts = []
    for granularity in dict.fromkeys(run["config"]["granularity"] for run in measured(runs)):
        own = sorted(measured(runs, granularity=granularity), key=lambda run: run["config"]["amount"])
        found = {
            (record["layer"], run["config"]["amount"]): record
            for run in own
            for record in run["quality"]
            if record["metric"] == "prediction_error_of_layer"
        }
        names, rates = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
        cells = [{"row": n, "rate": percent(r), "value": record["value"]} for (n, r), record in found.items()]
        name = f"quality-layers-{model}-{granularity}"
        files[FOLDER / f"{name}.svg"] = heat_map(cells, "rate", "error")
        parts.append(f"![{granularity}: prediction error, layer by rate](quality/{name}.svg)")
        rows = [[f"`{n}`", *(shown(found.get((n, r)), 3) for r in rates)] for n in names]
        parts.append(f"**{granularity}**, prediction error\n\n" + table(["layer", *map(percent, rates)], rows))
    return "\n\n".join(parts)


TITLES = {
    "prediction_error_of_block": "prediction error at these steps",
    "picture_error_of_block": "error of the picture",
}


def steps(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    """Block by part of the steps, for the prediction and for the picture."""
    parts = []
    own = sorted(measured(runs), key=lambda run: run["config"]["part"])
    for metric, title in TITLES.items():
        found = {
            (record["layer"], "{}-{}".format(*record["steps"])): record
            for run in own
            for record in run["quality"]
            if record["metric"] == metric
        }
        names, spans = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
        cells = [{"row": n, "steps": s, "value": record["value"]} for (n, s), record in found.items()]
        name = f"quality-steps-{model}-{metric.split('_')[0]}"
        files[FOLDER / f"{name}.svg"] = heat_map(cells, "steps", "error")
        parts.append(f"![Block by steps: {title}](quality/{name}.svg)")
        rows = [[f"`{n}`", *(shown(found.get((n, s)), 3) for s in spans)] for n in names]
        head = ["block left out", *(f"steps {s}" for s in spans)]
        parts.append(f"**{title.capitalize()}**, steps counted from noise\n\n" + table(head, rows))
    return "\n\n".join(parts)
