"""The rules that the quality protocols state, applied to runs: safe rates, what the founding note holds, composition.

Numbers come from result files, thresholds from the protocol files; this is only the comparing.
"""

from typing import NamedTuple

import numpy as np

from reference.bench.results import percent
from scripts.quality_runs import by_model, dense_of, measured, protocol, record

BOOTSTRAPS = 2000
EXACT = 0.005  # rates that differ by less are the same: units are whole


class Limits(NamedTuple):
    """What one component of one model stands, by one granularity: the highest rates, None if the lowest is too much."""

    model: str
    component: str
    granularity: str
    safe: float | None
    aggressive: float | None
    tested: list[float]
    ended_by: tuple[str, ...]  # what was lost at the first rate that is not safe: `retrieval`, `fidelity`


def limits(runs: list[dict]) -> list[Limits]:
    """For every model, component and granularity that was measured."""
    rules = protocol("quality-components")["rules"]
    found = []
    for model, own in by_model(runs).items():
        dense = dense_of(own)
        if dense is None:
            continue
        for component, granularity in dict.fromkeys(
            (run["config"]["component"], run["config"]["granularity"]) for run in measured(own)
        ):
            curve = measured(own, component=component, granularity=granularity)
            curve.sort(key=lambda run: run["achieved"]["unit_rate"])
            lost = [_lost(run, dense, rules["safe"]) for run in curve]
            safe = _highest(curve, [not what for what in lost])
            aggressive = _highest(curve, [_is_usable(run, dense, rules["aggressive"]) for run in curve])
            rates = [run["achieved"]["unit_rate"] for run in curve]
            ended_by = next(filter(None, lost), ())
            found.append(Limits(model, component, granularity, safe, aggressive, rates, ended_by))
    return found


def _highest(curve: list[dict], passed: list[bool]) -> float | None:
    """The last rate before the first that fails."""
    count = next((i for i, ok in enumerate(passed) if not ok), len(passed))
    return curve[count - 1]["achieved"]["unit_rate"] if count else None


def _lost(run: dict, dense: dict, rule: dict) -> tuple[str, ...]:
    """Which parts of the rule of safe rates a run breaks."""
    kept = record(run, "retrieval_top5_seen_change")["ci95"][0] > rule["retrieval_top5_seen_change"]
    near = all(
        record(run, metric)["ci95"][0] > record(dense, f"{metric}_other_noise")["ci95"][1]
        for metric in rule["above_other_noise"]
    )
    return tuple(name for name, fine in (("retrieval", kept), ("fidelity", near)) if not fine)


def _is_usable(run: dict, dense: dict, rule: dict) -> bool:
    least = rule["retrieval_top5_seen_left"] * record(dense, "retrieval_top5_seen")["value"]
    return record(run, "retrieval_top5_seen")["ci95"][0] >= least


def founding_note(found: list[Limits]) -> list[tuple[str, str, str, str]]:
    """(component, claim, verdict, numbers) for every row and column of the founding note's table."""
    rows = []
    for component, claims in protocol("quality-components")["founding_note"].items():
        own = [limit for limit in found if limit.component == component]
        for column, (low, high) in claims.items():
            claim = f"{column} {100 * low:.0f}-{100 * high:.0f} %"
            verdicts = {(limit.model, limit.granularity): _verdict(getattr(limit, column), low, high) for limit in own}
            groups: dict[str, list[str]] = {}
            for limit in own:
                reached = at_most(getattr(limit, column), limit.tested)
                case = f"{limit.granularity} of {limit.model} ({reached})"
                groups.setdefault(verdicts[limit.model, limit.granularity], []).append(case)
            numbers = "; ".join(
                f"{verdict}: {', '.join(cases)}" for verdict, cases in sorted(groups.items(), reverse=True)
            )
            rows.append((component, claim, _together(verdicts), numbers))
    return rows


def at_most(rate: float | None, tested: list[float]) -> str:
    """A limit in words."""
    if rate is None:
        return f"below {percent(min(tested))}"
    return f"{percent(rate)} or more" if rate == max(tested) else percent(rate)


def _verdict(rate: float | None, low: float, high: float) -> str:
    reached = (rate or 0.0) + EXACT
    return "holds" if reached >= high else "does not hold" if reached < low else "holds for the lower end"


def _together(verdicts: dict[tuple[str, str], str]) -> str:
    """One verdict for all models and granularities."""
    if not verdicts:
        return "not measured yet"
    if len(set(verdicts.values())) == 1:
        return next(iter(verdicts.values()))
    one_each = {
        "granularity": _agree(verdicts, 1),
        "model": _agree(verdicts, 0),
    }
    reasons = [name for name, agree in one_each.items() if agree]
    return "depends on " + (reasons[0] if reasons else "granularity and model")


def _agree(verdicts: dict[tuple[str, str], str], place: int) -> bool:
    """Whether the name at this place of the key alone decides."""
    names = {key[place] for key in verdicts}
    return len(names) > 1 and all(len({v for k, v in verdicts.items() if k[place] == name}) == 1 for name in names)


class Composed(NamedTuple):
    """Pruning (a) with a partner (b): root mean squared errors of the pictures, ratios with intervals, the verdict."""

    pruned: float
    partner: float
    both: float
    to_independent: tuple[float, float, float]  # c / (a + b): value, low, high
    to_aligned: tuple[float, float, float]  # sqrt(c) / (sqrt(a) + sqrt(b))
    verdict: str


def compose(pruned: dict, partner: dict, both: dict, dense: dict) -> Composed:
    """Apply the rule of `quality-composition.yaml` to four runs of the same prompts."""
    squared = [np.square(record(run, "picture_error")["per_prompt"]) for run in (pruned, partner, both)]
    floor = np.square(record(dense, "picture_error_other_noise")["per_prompt"])
    again = np.random.default_rng(0).integers(len(floor), size=(BOOTSTRAPS, len(floor)))
    a, b, c = (np.concatenate([[x.mean()], x[again].mean(1)]) for x in squared)
    independent, aligned = (_ratio(c, a + b), _ratio(np.sqrt(c), np.sqrt(a) + np.sqrt(b)))
    lowest = np.percentile(np.sqrt(floor[again].mean(1)), 2.5)
    if max(np.percentile(np.sqrt(x[1:]), 97.5) for x in (a, b, c)) >= lowest:
        verdict = "saturated"
    elif aligned[1] > 1:
        verdict = "collides"
    else:
        verdict = "interferes" if independent[1] > 1 else "composes"
    return Composed(*(float(np.sqrt(x[0])) for x in (a, b, c)), independent, aligned, verdict)


def composed(runs: list[dict]) -> list[tuple[dict, Composed]]:
    """Of one model's runs, the dense one first: those with both, and what is found of each."""
    dense, own = runs[0], measured(runs)
    alone = {run["config"]["partner"]: run for run in own if "granularity" not in run["config"]}
    pruned = {(r["config"]["granularity"], r["config"]["amount"]): r for r in own if "partner" not in r["config"]}
    return [
        (run, compose(pruned[key], alone[config["partner"]], run, dense))
        for run in own
        if (config := run["config"]).get("partner") in alone
        if (key := (config.get("granularity"), config.get("amount"))) in pruned
    ]


def _ratio(over: np.ndarray, under: np.ndarray) -> tuple[float, float, float]:
    values = over / np.maximum(under, 1e-12)
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return float(values[0]), float(low), float(high)
