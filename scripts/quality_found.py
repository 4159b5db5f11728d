"""What the runs of a quality page say, in sentences before its charts: how much is measured, and what came out.

Two figures are told apart here if their 95 % intervals do not overlap. All prompts are the same in the runs that are
compared, so this asks more than a paired test would.
"""

from collections import Counter

from reference.bench.results import percent
from scripts.quality_rules import composed
from scripts.quality_runs import measured, protocol, record

CHANCE = 0.025  # of a true ratio of 1, how often the whole 95 % interval lies above it
SHOWN = "retrieval_top5_seen"
NAMED = 3  # layers named at either end of a damage map


def so_far(runs: list[dict], name: str) -> str:
    """How many of the cells of a protocol have a run, model by model."""
    asked = cells(protocol(name))
    have = Counter(run["subject"]["model"] for run in runs if not run["subject"]["is_baseline"])
    found = ", ".join(f"{have[model]} of {count} for `{model}`" for model, count in asked.items())
    return f"Measured so far: {found}." if any(have[model] < count for model, count in asked.items()) else ""


def cells(asked: dict) -> dict[str, int]:
    """Model -> cells of a protocol, as `reference/bench/quality_cells.py` lists them; that module needs torch."""
    counts = Counter(dict.fromkeys(asked["models"], 0))
    for entry in asked["entries"]:
        rates = entry.get("rates", asked["rates"]) if "granularity" in entry else [None]
        for model in entry.get("models", asked["models"]):
            variants = [v for v in asked.get("variants", [{}]) if model in v.get("models", asked["models"])]
            variants = [v for v in variants if "granularity" in entry or v]
            counts[model] += len(rates) * len(entry.get("criteria", [None])) * len(variants)
    return dict(counts)


def criteria(runs: list[dict]) -> str:
    """In how many places, each a unit and a rate, a criterion has the lowest error or cannot be told from it."""
    places: dict[tuple, list[dict]] = {}
    for run in measured(runs):
        places.setdefault((run["config"]["granularity"], run["config"]["amount"]), []).append(run)
    places = {place: own for place, own in places.items() if len({_criterion(run) for run in own}) > 1}
    asked, ahead = Counter(), Counter()
    for own in places.values():
        best = min(own, key=lambda run: _error(run)["value"])
        asked.update({_criterion(run) for run in own})
        ahead.update({_criterion(run) for run in own if not _beats(best, run)})
    order = sorted(asked, key=lambda name: (-ahead[name] / asked[name], -asked[name], name))
    counted = ", ".join(f"`{name}` in {ahead[name]} of {asked[name]}" for name in order)
    return f"Lowest, or not told from the lowest, over {len(places)} units and rates: {counted}." if places else ""


def _criterion(run: dict) -> str:
    return run["config"]["criterion"]


def recovery(runs: list[dict]) -> str:
    """What training bought over none, or spoilt; which loss came out lowest; whether rounds beat one shot."""
    groups: dict[tuple, list[dict]] = {}
    for run in measured(runs):
        groups.setdefault((run["config"]["granularity"], run["config"]["amount"]), []).append(run)
    gained, lowest, clear, rounds, trained, worse = 0, Counter(), 0, Counter(), 0, []
    for (unit, rate), own in groups.items():
        without = next((run for run in own if run["config"]["recovery"]["kind"] == "none"), None)
        once = {_loss(run): run for run in own if _loss(run) and run["config"].get("rounds", 1) == 1}
        if without is None or not once:
            continue
        trained += 1
        gained += all(_beats(run, without) for run in once.values())
        worse += [
            f"`{loss}` after {percent(rate)} of the {unit}s ({_error(without)['value']:.3f} before, "
            f"{_error(run)['value']:.3f} after)"
            for loss, run in once.items()
            if _beats(without, run)
        ]
        first, *others = sorted(once.values(), key=lambda run: _error(run)["value"])
        lowest[_loss(first)] += 1
        clear += all(_beats(first, other) for other in others)
        for run in own:
            if run["config"].get("rounds", 1) > 1 and _loss(run) in once:
                other = once[_loss(run)]
                rounds["lower" if _beats(run, other) else "higher" if _beats(other, run) else "same"] += 1
    if not trained:
        return ""
    names = ", ".join(f"`{loss}` in {n}" for loss, n in lowest.most_common())
    text = (
        f"In {gained} of {trained} cases every kind of training lowered the prediction error. Lowest of the losses "
        f"after one shot: {names}; in {clear} of them its interval is apart from the others'."
    )
    if worse:
        text += f" **Worse than without training**: {'; '.join(worse)}."
    if rounds:
        text += (
            f" **Rounds against one shot**, at equal steps and loss: a lower error in {rounds['lower']} of "
            f"{rounds.total()} comparisons, a higher one in {rounds['higher']}; in {rounds['same']} the intervals "
            "overlap."
        )
    return text + " All of it trains on the drawings that the dense model was trained on."


def as_far(runs: list[dict], second: dict) -> str:
    """What models that were only pruned show, of those about as far from the dense one as another training is."""
    low, high = _error(second)["ci95"]
    near = [run for run in measured(runs) if low <= _error(run)["value"] <= high]
    if not near:
        return ""
    shown = sorted(record(run, SHOWN)["value"] for run in near)
    fewer = sum(record(run, SHOWN)["ci95"][1] < record(second, SHOWN)["ci95"][0] for run in near)
    return (
        "The same distance, another worth: runs without training after pruning whose prediction error lies where that "
        f"of the second training lies, between {low:.3f} and {high:.3f}: {len(near)}. Seen names are among the first 5 "
        f"in {shown[0]:.2f} to {shown[-1]:.2f} of their pictures, in {record(second, SHOWN)['value']:.2f} of the "
        f"second training's; in {fewer} of these runs the interval lies below."
    )


def _loss(run: dict) -> str | None:
    return run["config"]["recovery"].get("loss")


def _error(run: dict) -> dict:
    return record(run, "prediction_error")


def _beats(run: dict, other: dict) -> bool:
    return _error(run)["ci95"][1] < _error(other)["ci95"][0]


def composition(runs: list[dict]) -> str:
    """How often each verdict was found, and how many chance alone would give."""
    found = Counter(verdict.verdict for _, verdict in composed(runs))
    told = found.total() - found["saturated"]
    counted = ", ".join(f"{word} {n}" for word, n in found.most_common())
    text = f"{found.total()} pairs: {counted}."
    if told:
        text += (
            f" Of {told} pairs that can be judged, {CHANCE * told:.1f} would read *interferes* by chance, were all "
            "errors independent."
        )
    if found["saturated"] > told:
        text += (
            " Most are saturated: pruning alone already moves these pictures about as far as other noise does, so the "
            "partner's share cannot be seen."
        )
    return text


def damage(runs: list[dict]) -> str:
    """The layers or blocks with the largest and the smallest error: of each unit at the rate nearest to one half."""
    rates: dict[str | None, list[float]] = {}
    for run in measured(runs):
        rates.setdefault(run["config"].get("granularity"), []).append(run["config"].get("amount") or 0.0)
    lines = []
    for unit, tested in rates.items():
        rate = min(tested, key=lambda rate: abs(rate - 0.5))
        errors = {}
        for run in measured(runs, granularity=unit, **({"amount": rate} if unit else {})):
            for found in run["quality"]:
                if "layer" in found and found["metric"] != "prediction_error_of_block":
                    when = " at steps {}-{}".format(*found["steps"]) if "steps" in found else ""
                    errors[f"`{found['layer']}`{when}"] = found["value"]
        order = sorted(errors, key=errors.get)
        worst = ", ".join(f"{place} {errors[place]:.3f}" for place in reversed(order[-NAMED:]))
        least = ", ".join(f"{place} {errors[place]:.3f}" for place in order[:NAMED])
        what = f"{percent(rate)} of a layer's {unit}s removed" if unit else "A block left out"
        figure = "prediction error" if unit else "error of the picture"
        lines.append(
            f"- {what}: largest {figure} at {worst}" + (f"; smallest at {least}." if len(order) > NAMED else ".")
        )
    return "\n\n" + "\n".join(lines) if lines else ""
