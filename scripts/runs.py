"""Every run of every suite as one flat row: what the tables, charts and pages of the site show of it.

state = current           of a published device, the newest of its kind under its newest text
        earlier run       the same was measured again under the same protocol
        earlier protocol  the protocol file has changed since
        earlier weights   the model was trained again since
        third-party       a device that published.yaml does not name
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import yaml

from reference.bench import results
from reference.bench.device import ROOT

SCHEMA = "result/1"
SUITES = ("embedded", "quality", "engine", "latency", "kernels", "claims", "cost")  # their order on every page
STATES = ("current", "earlier run", "earlier protocol", "earlier weights", "third-party")


class Row(NamedTuple):
    """A run and what is read from it; `dense` is the baseline that its ratios are to, None where it names none."""

    run: dict
    dense: dict | None
    suite: str
    device: str  # name of the folder
    state: str

    @property
    def id(self) -> str:
        """Name of the run, and of its file."""
        return self.run["run_id"]

    @property
    def model(self) -> str:
        """The model that was pruned."""
        return self.run["subject"]["model"]

    @property
    def protocol(self) -> str:
        """Name of the protocol file: the id without the number that counts its versions."""
        return protocol_of(self.run)

    @property
    def machine(self) -> str:
        """The device in words."""
        e = self.run["environment"]
        return e["gpu"] if "gpu" in e else f"{e['cpu']}, {e['cores']} cores" if "cores" in e else e["cpu"]

    @property
    def unit(self) -> str:
        """What was removed: a granularity, several joined by ` + `, or nothing."""
        config = self.run["config"]
        asked = config.get("asked") or {}
        if granularity := config.get("granularity") or asked.get("granularity"):
            return granularity
        if self.suite == "kernels" or asked.get("kernel") == "2:4":
            return "2:4"
        if "mask" in asked:
            return "weight"
        return " + ".join(dict.fromkeys(step[0] for step in asked.get("steps", ())))

    @property
    def amount(self) -> float | None:
        """The rate that was asked for; of an N:M pattern the one that it means, of modulation a rank has none."""
        config = self.run["config"]
        asked = config | (config.get("asked") or {})
        if asked.get("amount") is not None:
            return asked["amount"]
        if ":" in self.unit:
            kept, of = map(int, self.unit.split(":"))
            return 1 - kept / of
        rates = [step[1] for step in asked.get("steps", ()) if step[0] != "rank"]
        return asked.get("mask", rates[0] if rates else None)

    @property
    def criterion(self) -> str:
        """How units were scored; `reference.prune` takes the magnitude where nothing is said."""
        config = self.run["config"]
        asked = config | (config.get("asked") or {})
        return asked.get("criterion", "magnitude") if self.unit and self.suite != "kernels" else ""

    @property
    def scope(self) -> str:
        """Among which units the lowest were taken, where that is not the layer."""
        scope = self.run["config"].get("scope") or ""
        return "" if scope == "layer" else scope

    @property
    def recovery(self) -> str:
        """Kind of training afterwards, or none."""
        return self.run["config"].get("recovery", {}).get("kind", "none")

    @property
    def nominal(self) -> float | None:
        """Multiply-accumulates of the dense model / those that are left, zero weights left out."""
        now = self.run["achieved"] or {}
        was = now.get("dense_macs") or ((self.dense or {}).get("achieved") or {}).get("macs")
        return was / now["macs_nonzero"] if was and now.get("macs_nonzero") else None

    @property
    def speed(self) -> dict | None:
        """The timing with the most work: the largest batch, or most rows."""
        return max(self.run["speed"], key=lambda s: s.get("pictures") or s.get("rows") or 0, default=None)

    @property
    def label(self) -> str:
        """`neuron 50 %, obs`, and what else tells the run from its neighbours."""
        if self.run["subject"]["is_baseline"]:
            return "dense"
        asked = self.run["config"].get("asked") or {}
        rate = f" {results.percent(self.amount)}" if self.amount is not None and ":" not in self.unit else ""
        parts = [f"{self.unit or self.run['subject']['entry']}{rate}", self.criterion, self.scope]
        parts += [self.recovery if self.recovery != "none" else "", asked.get("mode", ""), asked.get("kernel", "")]
        return ", ".join(dict.fromkeys(filter(None, parts)))

    def quality(self, metric: str) -> dict | None:
        """The record of a metric."""
        return next((q for q in self.run["quality"] if q["metric"] == metric), None)

    def share(self, field: str) -> float | None:
        """What is left of `parameters`, `bytes`, ...: pruned / dense."""
        now, was = self.run["achieved"] or {}, (self.dense or {}).get("achieved") or {}
        return now[field] / was[field] if now.get(field) is not None and was.get(field) else None


def phantom(row: Row, speedup: float) -> bool:
    """Less than half of the nominal gain arrives."""
    return row.nominal is not None and results.is_phantom(row.nominal, speedup)


def collect(root: Path = ROOT) -> list[Row]:
    """All runs below results/, suite by suite, oldest first."""
    named = yaml.safe_load((ROOT / "reference" / "bench" / "protocols" / "published.yaml").read_text())
    rows = []
    for suite in SUITES:
        for folder in sorted(path for path in (root / "results" / suite).glob("*") if path.is_dir()):
            runs = [run for run in results.read(folder) if run.get("schema") == SCHEMA and is_named(run)]
            rows += of_device(runs, suite, folder.name, folder.name in named.get(suite, []))
    return rows


def is_named(run: dict) -> bool:
    """Whether a file bears the name of its run: pages link to it by that. An archive holds many."""
    return run["path"].suffix != ".json" or run["path"].stem == run["run_id"]


def of_device(runs: list[dict], suite: str, device: str, published: bool = True) -> list[Row]:
    """Rows of one device's runs of one suite, oldest first."""
    by_id = {run["run_id"]: run for run in runs}
    newest = {same(run): run["run_id"] for run in runs}
    text = {protocol_of(run): run["protocol"]["sha256"] for run in runs}
    weights = {(protocol_of(run), run["subject"]["model"]): run["subject"]["weights_sha256"] for run in runs}
    rows = []
    for run in runs:
        if not published:
            state = "third-party"
        elif run["protocol"]["sha256"] != text[protocol_of(run)]:
            state = "earlier protocol"
        elif run["subject"]["weights_sha256"] != weights[protocol_of(run), run["subject"]["model"]]:
            state = "earlier weights"
        else:
            state = "current" if newest[same(run)] == run["run_id"] else "earlier run"
        dense = by_id.get(run["subject"]["baseline_run"] or run["run_id"])
        rows.append(Row(run, dense, suite, device, state))
    return rows


def protocol_of(run: dict) -> str:
    """`quality-layers` for the id `quality-layers-1`."""
    return re.sub(r"-\d+$", "", run["protocol"]["id"])


def same(run: dict) -> str:
    """What makes two runs of a device the same measurement."""
    subject = run["subject"]
    return json.dumps([run["protocol"]["sha256"], subject["model"], subject["entry"], run["config"]], sort_keys=True)


def fields(row: Row) -> dict[str, str | list[float]]:
    """All that a result file says, field by field; a number with its interval is a list of three."""
    run, flat = row.run, {}
    parts = {name: run[name] for name in ("status", "error", "created", "protocol", "subject", "config")}
    _flatten(parts | {"environment": run["environment"], "code": run["code"], "achieved": run["achieved"]}, "", flat)
    flat["nominal speed-up"] = "-" if row.nominal is None else f"{row.nominal:.3f}"
    for quality in run["quality"]:
        steps = "steps {}-{}".format(*quality["steps"]) if "steps" in quality else ""
        name = " ".join(filter(None, ["quality", quality["metric"], quality.get("layer", ""), steps]))
        flat[name] = [quality["value"], *quality["ci95"]]
        flat[f"{name}, pictures"] = str(quality["n"])
    for speed in run["speed"]:
        work = next((f"{speed[name]} {name}" for name in ("pictures", "rows") if name in speed), "")
        name = " ".join(filter(None, ["speed-up", work, speed.get("mode", "")]))
        flat[name] = [speed["speedup"], *speed["speedup_ci95"]]
        for which in ("dense", "pruned"):
            times = speed[which]
            flat[f"{name}, {which} ms"] = f"{times['median']:.3f} (p10 {times['p10']:.3f}, p90 {times['p90']:.3f})"
        flat[f"{name}, warm-up and repeats"] = f"{speed['warmup']}, {speed['repeats']}"
    return flat


def _flatten(value: object, name: str, flat: dict) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _flatten(part, f"{name} {key}".strip(), flat)
    elif name == "code command":
        flat[name] = " ".join(value)
    elif isinstance(value, list):
        flat[name] = ", ".join(map(str, value))
    else:
        flat[name] = f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
