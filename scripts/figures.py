"""What the charts of runs share: which runs count, how numbers are written, choices; and a chart on its page."""

from collections.abc import Iterable, Sequence

from scripts.charts import Chart, figure, missing
from scripts.runs import Row


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


def shown(chart: Chart | None, title: str, command: str, why: str = "No run of this kind is published yet.") -> str:
    """A chart, or what would make it."""
    return figure(chart) if chart else missing(title, command, why)
