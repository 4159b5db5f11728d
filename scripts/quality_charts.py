"""SVG of the quality evidence: curves with intervals and heat maps, from result files."""

import altair as alt
import vl_convert

from scripts.quality_runs import measured, record

# Okabe and Ito's palette: told apart by colour-blind readers; one colour a criterion, the same everywhere.
COLOURS = {
    "magnitude": "#0072B2", "magnitude global": "#000000", "random": "#999999", "taylor": "#D55E00", "obs": "#009E73",
    "obs-diff": "#CC79A7", "wanda": "#E69F00", "output-energy": "#56B4E9", "head-gradient": "#F0E442",
    "diff-pruning": "#F0E442", "block-influence": "#009E73", "sensitivity": "#D55E00",
}  # fmt: skip
# Metric, its name, and the record of the dense model that says where it tells no more.
PANELS = (
    ("prediction_error", "relative error of the prediction", None),
    ("psnr", "PSNR to the dense picture, dB", "psnr_other_noise"),
    ("retrieval_top5_seen", "name among the first five", "retrieval_top5_seen"),
)


def curves(runs: list[dict], dense: dict, series: str = "criterion") -> str:
    """Panels side by side: a metric over the share of units that went, a line for every value of `series`."""
    panels = []
    for metric, title, floor in PANELS:
        rows = []
        for run in runs:
            if found := record(run, metric):
                name = run["config"][series] + (" global" if run["config"].get("scope") == "global" else "")
                place = {"series": name, "rate": run["achieved"]["unit_rate"]}
                rows.append(place | {"y": found["value"], "low": found["ci95"][0], "high": found["ci95"][1]})
        names = list(dict.fromkeys(row["series"] for row in rows))
        others = iter(dict.fromkeys(COLOURS.values()))  # granularities, where they are the lines
        colours = [COLOURS.get(name) or next(others) for name in names]
        shape = alt.Shape("series:N", title=series, scale=alt.Scale(domain=names))
        colour = alt.Color("series:N", title=series, scale=alt.Scale(domain=names, range=colours))
        base = alt.Chart(alt.Data(values=rows))
        x = alt.X("rate:Q", title="share of units removed", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
        layers = [
            base.mark_line(opacity=0.7).encode(x=x, y=alt.Y("y:Q", title=title), color=colour),
            base.mark_rule(opacity=0.6).encode(x=x, y=alt.Y("low:Q", title=title), y2="high:Q", color=colour),
            base.mark_point(filled=True, size=35).encode(x=x, y=alt.Y("y:Q", title=title), color=colour, shape=shape),
        ]
        if floor and (line := record(dense, floor)):
            values = alt.Data(values=[{"y": line["value"]}])
            layers.append(alt.Chart(values).mark_rule(strokeDash=[4, 3], color="#555").encode(y="y:Q"))
        panels.append(alt.layer(*layers).properties(width=250, height=230))
    return _svg(alt.hconcat(*panels))


def heat_map(rows: list[dict], x: str, title: str) -> str:
    """Cells of {"row", x, "value"}, the rows in their order; darker is worse."""
    order, columns = (list(dict.fromkeys(row[key] for row in rows)) for key in ("row", x))
    if x == "rate":
        columns.sort()
    chart = alt.Chart(alt.Data(values=rows)).mark_rect()
    chart = chart.encode(
        x=alt.X(f"{x}:O", title=x, sort=columns, axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("row:N", title=None, sort=order, axis=alt.Axis(labelLimit=420)),
        color=alt.Color("value:Q", title=title, scale=alt.Scale(scheme="viridis", reverse=True)),
    )
    return _svg(chart.properties(width=90 * len(columns), height=max(80, 13 * len(order))))


def _svg(chart: alt.TopLevelMixin) -> str:
    return vl_convert.vegalite_to_svg(chart.properties(background="white").to_json())


def curve_groups(runs: list[dict]) -> dict[str, list[dict]]:
    """Granularity -> the runs of one model, in the order of criterion and rate."""
    own = sorted(measured(runs), key=lambda run: (run["config"]["criterion"], run["achieved"]["unit_rate"]))
    names = dict.fromkeys(run["config"]["granularity"] for run in own)
    return {name: [run for run in own if run["config"]["granularity"] == name] for name in names}
