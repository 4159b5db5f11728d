"""Runs of the quality suite as data: which of them a page shows, and the numbers in them. No torch."""

from collections.abc import Iterable

import yaml

from reference.bench.device import ROOT
from scripts.runs import Row

PROTOCOLS = ROOT / "reference" / "bench" / "protocols"


def protocol(name: str) -> dict:
    """A protocol file by its name."""
    return yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text(encoding="utf-8"))


def of_protocol(rows: Iterable[Row], name: str, seed: int = 0) -> list[dict]:
    """The current runs of a protocol on the device that measured it last; model by model, the dense one first."""
    own = [row for row in rows if row.protocol == name and row.state == "current"]
    own = [row for row in own if (row.run["config"].get("seed") or 0) == seed]
    last = max(own, key=lambda row: row.run["created"], default=None)
    runs = [row.run for row in own if row.device == last.device]
    return sorted(runs, key=lambda run: (run["subject"]["model"], not run["subject"]["is_baseline"]))


def by_model(runs: list[dict]) -> dict[str, list[dict]]:
    """Model -> its runs."""
    models = dict.fromkeys(run["subject"]["model"] for run in runs)
    return {model: [run for run in runs if run["subject"]["model"] == model] for model in models}


def dense_of(runs: list[dict]) -> dict | None:
    """The dense run among those of one model."""
    return next((run for run in runs if run["subject"]["is_baseline"]), None)


def measured(runs: list[dict], **wanted: object) -> list[dict]:
    """The runs that went well and whose config has these values; None: has none of that name."""
    return [
        run
        for run in runs
        if run["status"] == "ok" and not run["subject"]["is_baseline"]
        if all(run["config"].get(name) == value for name, value in wanted.items())
    ]


def record(run: dict, metric: str) -> dict | None:
    """A quality record by its metric."""
    return next((found for found in run["quality"] if found["metric"] == metric), None)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)
