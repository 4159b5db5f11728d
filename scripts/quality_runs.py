"""Runs of the quality suite as data: which of them a page shows, and the numbers in them. No torch."""

import json
from pathlib import Path

import yaml

from scripts import catalog

PROTOCOLS = catalog.ROOT / "reference" / "bench" / "protocols"
WEIGHTS = catalog.ROOT / "reference" / "embedded" / "weights"


def protocol(name: str) -> dict:
    """A protocol file by its name."""
    return yaml.safe_load((PROTOCOLS / f"{name}.yaml").read_text(encoding="utf-8"))


def read(results: Path) -> list[dict]:
    """All runs of the published machines, oldest first, each with the path of its file as `path`."""
    devices = yaml.safe_load((PROTOCOLS / "published.yaml").read_text(encoding="utf-8")).get("quality", [])
    files = [file for device in devices for file in (results / "quality" / device).glob("*.json")]
    return sorted((json.loads(file.read_text()) | {"path": file} for file in files), key=lambda run: run["created"])


def of_protocol(runs: list[dict], name: str, seed: int = 0) -> list[dict]:
    """What counts of a protocol: the runs with its newest text and, of each model, its newest weights.

    Of runs that ask for the same, the latest; dense models first, one for each model.
    """
    wanted = protocol(name)["id"]
    own = [run for run in runs if run["protocol"]["id"] == wanted and run["config"].get("seed", 0) == seed]
    if not own:
        return []
    own = [run for run in own if run["protocol"]["sha256"] == own[-1]["protocol"]["sha256"]]
    weights = {run["subject"]["model"]: run["subject"]["weights_sha256"] for run in own}
    own = [run for run in own if run["subject"]["weights_sha256"] == weights[run["subject"]["model"]]]
    latest = {asked(run): run for run in own}
    return sorted(latest.values(), key=lambda run: (run["subject"]["model"], not run["subject"]["is_baseline"]))


# What a run's config holds besides what was asked of it.
COMMON = ("sampler", "noise_seeds", "dtype", "storage_dtype", "prompts", "seed")


def asked(run: dict) -> str:
    """What tells a run from the others of its protocol."""
    config = {name: value for name, value in run["config"].items() if name not in COMMON}
    return json.dumps([run["subject"]["model"], run["subject"]["entry"], config], sort_keys=True)


def by_model(runs: list[dict]) -> dict[str, list[dict]]:
    """Model -> its runs, the dense one first."""
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


def shown(found: dict | None, digits: int) -> str:
    """Value and interval."""
    if found is None:
        return "-"
    low, high = found["ci95"]
    return f"{found['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def percent(rate: float | None) -> str:
    """A rate in whole per cent."""
    return "-" if rate is None else f"{round(100 * rate)} %"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "&#124;") for cell in line) + " |" for line in lines)
