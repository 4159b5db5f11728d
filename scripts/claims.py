"""Claimed against measured: for every number that a paper prints, what our runs say about it, and why not if nothing.

A run tests a claim only if it says so: `config.claim` is `<paper>/<claim>`. Everything else is *not comparable*, and
the reasons name what differs. Gains are compared, never absolute times on other hardware: the gain of a speed-up of
1.3x is 0.3, that of a share removed is the share.
"""

import re
from typing import NamedTuple

from reference.bench import claims_table, results
from scripts.text import anchor, h

# Dimensionless gains, and how a claim's two numbers give them. Other metrics are absolute, or are not measured here.
GAINS = {
    "speed-up": lambda dense, pruned: pruned / dense - 1,
    "params-removed": lambda dense, pruned: _share(pruned) - _share(dense),
    "macs-removed": lambda dense, pruned: _share(pruned) - _share(dense),
    "params": lambda dense, pruned: 1 - pruned / dense,
    "macs": lambda dense, pruned: 1 - pruned / dense,
    "flops": lambda dense, pruned: 1 - pruned / dense,
    "size": lambda dense, pruned: 1 - pruned / dense,
}
ABSOLUTE = {"latency", "throughput", "memory", "energy", "training-cost"}
WORDS = {
    "reproduced": "at least 90 % of the claimed gain, or the claim lies in the interval",
    "partly": "at least half of the claimed gain",
    "not reproduced": "less than half of the claimed gain",
    "not comparable": "no run of ours tests it; the reasons say what differs",
}
FOUNDING = "the founding note of this list"
# What the note said of magnitude pruning of single weights: rate -> (share of the file gone, gain in speed from, to).
FOUNDING_CLAIMS = {0.3: (0.30, 0.15, 0.25), 0.5: (0.50, 0.30, 0.40)}


class Verdict(NamedTuple):
    """What our runs say about a claim: one of WORDS, the reasons, and the run that was used."""

    word: str
    reasons: list[str]
    run: dict | None = None
    measured: float | None = None  # gain
    interval: tuple[float, float] | None = None


def _share(percent: float | None) -> float:
    return (percent or 0.0) / 100


def judge(claimed: float, measured: float, interval: tuple[float, float] | None = None) -> str:
    """Verdict on a gain: 0.3 for 1.3 times as fast, or for 30 % less."""
    if measured >= 0.9 * claimed or (interval is not None and interval[0] <= claimed <= interval[1]):
        return "reproduced"
    return "partly" if measured >= 0.5 * claimed else "not reproduced"


def achieved(run: dict, baseline: dict, metric: str) -> tuple[float, tuple[float, float] | None]:
    """Gain of a run in a metric of GAINS, with its interval where it is a time (at the largest batch)."""
    now, was = run["achieved"], baseline["achieved"]
    if metric == "speed-up":
        speed = max(run["speed"], key=lambda s: s["pictures"])
        return speed["speedup"] - 1, (speed["speedup_ci95"][0] - 1, speed["speedup_ci95"][1] - 1)
    field = {"params-removed": "parameters", "params": "parameters", "size": "bytes"}.get(metric, "macs")
    return 1 - now[field] / was[field], None


def verdict(paper: dict, claim: dict, runs: list[dict], vocab: dict) -> Verdict:
    """What `runs` say about one claim of one paper."""
    tests = [r for r in runs if claim_of(r) == f"{paper['id']}/{claim['id']}" and r["status"] == "ok"]
    if tests and isinstance(tests[-1]["config"]["claim"], dict):
        return at_full_size(tests[-1])
    metric, both = claim["metric"], (claim["dense"], claim["pruned"])
    in_unit = metric in GAINS and ("%" in claim["unit"]) == metric.endswith("removed") and "fewer" not in claim["unit"]
    if tests and in_unit and both[1] is not None and (both[0] is not None or metric.endswith("removed")):
        run = tests[-1]
        baseline = next(r for r in runs if r["run_id"] == run["subject"]["baseline_run"])
        gain, interval = achieved(run, baseline, metric)
        word = judge(GAINS[metric](*both), gain, interval)
        return Verdict(word, [f"ratio measured on other hardware: {run['environment']['cpu']}"], run, gain, interval)
    return Verdict("not comparable", reasons(paper, claim, runs, vocab))


def claim_of(run: dict) -> str | None:
    """The claim that a run names: `<paper>/<claim>`, in the claims suite with what was printed."""
    named = run["config"].get("claim")
    return named["id"] if isinstance(named, dict) else named


def at_full_size(run: dict) -> Verdict:
    """Verdict of a run of the claims suite; its rules are in `reference/bench/claims_table.py`."""
    word, _, rest = claims_table.judge(run).partition(",")
    if word.startswith("not comparable"):
        return Verdict("not comparable", [word.partition(": ")[2] + rest])
    device = run["environment"].get("gpu", run["environment"]["cpu"])
    told = [*filter(None, [rest.strip()]), f"at full size with random weights, on {device}"]
    ours, interval = claims_table.measured(run)
    if run["config"]["claim"]["measure"] == "saved_gb":
        return Verdict(word, [f"saves {ours:.1f} GB", *told], run)
    return Verdict(word, told, run, ours - 1, None if interval is None else (interval[0] - 1, interval[1] - 1))


def reasons(paper: dict, claim: dict, runs: list[dict], vocab: dict) -> list[str]:
    """What differs between a claim and all of our runs, of whatever suite: unit removed, model, metric, hardware."""
    found = []
    units, models = {_unit(run) for run in runs if _unit(run)}, {run["subject"]["model"] for run in runs}
    labels = {g: vocab["granularity"][g]["label"].lower() for g in paper["granularity"]}
    both = [g for g in labels if g in units]
    if "unstated" in labels:
        found.append("what it removes is not stated")
    elif not both:
        found.append(
            f"no run removes {' or '.join(labels.values())}" if labels else "it removes no part of the network"
        )
    elif claim["metric"] == "speed-up" and not any(run["speed"] for run in runs if _unit(run) in both):
        found.append(f"no run that removes {' or '.join(labels[g] for g in both)} was timed")
    if not models & set(paper["targets"]):
        found.append(f"our runs are of {', '.join(sorted(models))}" if models else "no run yet")
    if claim["metric"] in ABSOLUTE and claim["unit"] != "x":
        where = f"on {claim['hardware']}" if claim["hardware"] else "on hardware that is not stated"
        found.append(f"an absolute figure {where}")
    elif claim["metric"] in {q["metric"] for run in runs for q in run["quality"]}:
        found.append(f"our {vocab['metric'][claim['metric']]['label']} is to the dense model's own pictures")
    elif claim["metric"] not in GAINS:
        found.append(f"no run measures {vocab['metric'][claim['metric']]['label']}")
    return found or ["no run names this claim"]


def _unit(run: dict) -> str | None:
    unit = run["config"].get("granularity")
    return "N:M" if unit and re.fullmatch(r"\d+:\d+", unit) else unit


def sentence_of(found: Verdict) -> str:
    """A verdict in one cell of a table in HTML."""
    if found.run is None:
        return f"not comparable: {h('; '.join(found.reasons))}"
    return f"<b>{found.word}</b>: {signed(found.measured, found.interval)}; {h('; '.join(found.reasons))}"


def signed(gain: float, interval: tuple[float, float] | None = None) -> str:
    """A gain: `+30 % (+28 % to +33 %)`."""
    spread = f" ({signed(interval[0])} to {signed(interval[1])})" if interval else ""
    return f"{100 * gain:+.0f} %{spread}"


def measured_here(papers: list[dict], runs: list[dict]) -> dict[str, str]:
    """Facet of the list: `claim` if a run tests one of the paper's claims, `unit` if one removes the same unit."""
    tested = {claim.split("/")[0] for run in runs if (claim := claim_of(run))}
    return {p["id"]: "claim" if p["id"] in tested else "unit" if nearest(p, runs) else "no" for p in papers}


def nearest(paper: dict, runs: list[dict]) -> list[dict]:
    """Timed runs that remove the same unit as a pruning paper: of each unit and recovery the one nearest to half."""
    if paper["family"] != "pruning":
        return []
    best = {}
    for run in runs:
        unit, recovery = _unit(run), run["config"].get("recovery", {}).get("kind", "none")
        if run["status"] == "ok" and run["speed"] and unit in paper["granularity"]:
            distance = abs(run["config"]["amount"] - 0.5)
            if (unit, recovery) not in best or distance < best[unit, recovery][0]:
                best[unit, recovery] = (distance, run)
    return [run for _, run in best.values()]


RUN_HEADS = ("Removed", "Recovery", "Speed-up (95 %)", "PSNR to the dense picture", "Run")


def run_cells(runs: list[dict], page: str) -> list[list[str]]:
    """A few runs as rows of HTML: what went, what it bought, what it cost."""
    rows = []
    for run in runs:
        speed = max(run["speed"], key=lambda s: s["pictures"], default=None)
        times = (
            f"{speed['speedup']:.2f}x ({speed['speedup_ci95'][0]:.2f} to {speed['speedup_ci95'][1]:.2f})"
            if speed
            else "-"
        )
        quality = results.value(next((q for q in run["quality"] if q["metric"] == "psnr"), None), 1)
        unit = run["config"]["granularity"]
        units = f"weights, {unit}" if ":" in unit else f"{unit}s"
        what = f"{results.percent(run['config'].get('amount'))} of each layer's {units}"
        kind = run["config"].get("recovery", {}).get("kind", "none")
        rows.append([h(what), h(kind), h(times), f"{h(quality)} dB", anchor(run["run_id"], f"{page}#{run['run_id']}")])
    return rows


def founding(runs: list[dict]) -> list[tuple[str, float, Verdict]]:
    """The founding note's claims on magnitude pruning of weights: (what, claimed gain, verdict)."""
    rows = []
    by_id = {run["run_id"]: run for run in runs}
    for run in runs:
        rate = run["config"].get("amount")
        if run["subject"]["entry"] != "unstructured" or rate not in FOUNDING_CLAIMS or run["status"] != "ok":
            continue
        if not run["speed"]:
            continue  # of another suite: the note promises time
        for metric, claimed in zip(("size", "speed-up"), FOUNDING_CLAIMS[rate][:2], strict=True):
            gain, interval = achieved(run, by_id[run["subject"]["baseline_run"]], metric)
            word = judge(claimed, gain, interval)
            what = f"{results.percent(rate)} of the weights: {'smaller file' if metric == 'size' else 'faster'}"
            rows.append((what, claimed, Verdict(word, [f"on {run['environment']['cpu']}"], run, gain, interval)))
    return rows
