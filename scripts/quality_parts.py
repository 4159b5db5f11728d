"""The parts of the quality pages that are no charts: each makes Markdown of one model's runs, the dense one first."""

from pathlib import Path

from reference.bench.results import percent, value
from scripts.charts import table as wide
from scripts.pictures import grid
from scripts.quality_rules import composed
from scripts.quality_runs import measured, protocol, record, table

GRID_RATES, GRID_WIDTH = (0.3, 0.5, 0.7), 6

GENERATED = Path("site") / "generated"
Files = dict[Path, bytes]

SECOND_SEED = (
    "The same training with another seed, beside the model that ships: two models of one worth, drawn from the same "
    "noise. How far apart they are is no loss, so a distance of this size from the dense model need not be one either; "
    "what the pictures are, and whether they show what was asked for, tells."
)
COMPOSITION = "; ".join(
    f"**{name}**: {text}" for name, text in protocol("quality-composition")["rules"].items()
).join(("How a verdict is found: ", "."))  # fmt: skip


def grids(runs: list[dict], model: str, files: Files) -> str:
    """The first prompts, dense and every entry, at three rates."""
    dense, parts = runs[0], []
    for rate in GRID_RATES:
        near = [run for run in measured(runs) if run["artifacts"] and abs(run["config"]["amount"] - rate) < 0.045]
        near.sort(key=lambda run: (run["config"]["granularity"], run["config"]["criterion"]))
        strips = [("dense", _strip(dense))]
        strips += [(_label(run), _strip(run)) for run in near]
        if len(strips) > 1:
            name = f"quality/grid-{model}-{percent(rate)[:2]}.png"
            files[GENERATED / name] = grid(strips, dense["config"]["prompts"][:GRID_WIDTH])
            parts.append(f"At {percent(rate)}:\n\n![Dense and every entry at {percent(rate)}]({name})")
    return "\n\n".join(parts) or "No pictures at 30, 50 or 70 % yet."


def best(runs: list[dict], model: str) -> str:
    """For each granularity and rate the criterion with the lowest error, beside magnitude and chance."""
    groups: dict[tuple[str, float], list[dict]] = {}
    for run in measured(runs):
        groups.setdefault((run["config"]["granularity"], run["config"]["amount"]), []).append(run)
    rows = []
    for granularity, amount in sorted(groups):
        own = sorted(groups[granularity, amount], key=lambda run: record(run, "prediction_error")["value"])
        high = record(own[0], "prediction_error")["ci95"][1]
        near = [_criterion(run) for run in own[1:] if record(run, "prediction_error")["ci95"][0] <= high]
        errors = {_criterion(run): value(record(run, "prediction_error"), 3) for run in own}
        rows.append(
            [granularity, percent(own[0]["achieved"]["unit_rate"]), _criterion(own[0]), ", ".join(near) or "none"]
            + [value(record(own[0], metric), digits) for metric, digits in BEST.values()]
            + [errors.get("magnitude", "-"), errors.get("random", "-")]
        )
    heads = ["unit", "removed", "best criterion", "intervals overlap", *BEST, "error by magnitude", "error by chance"]
    return wide(f"Best criteria for {model}", heads, rows)


BEST = {
    "prediction error": ("prediction_error", 3),
    "PSNR, dB": ("psnr", 1),
    "top 5, seen": ("retrieval_top5_seen", 2),
}


def _criterion(run: dict) -> str:
    scope = run["config"].get("scope")
    return run["config"]["criterion"] + (f" ({scope})" if scope else "")


def _label(run: dict) -> str:
    """`neuron, obs`; with the rate where whole units made another of it: `head 40 %, obs`."""
    config, rate = run["config"], run["achieved"]["unit_rate"]
    other = f" {percent(rate)}" if abs(rate - config["amount"]) >= 0.02 else ""
    return f"{config['granularity']}{other}, {_criterion(run)}"


def _strip(run: dict) -> Path:
    return run["path"].parent / run["artifacts"][0]["path"]


def recovery(runs: list[dict], model: str) -> str:
    """A table a granularity and rate, cheapest first."""
    own = measured(runs)
    own.sort(
        key=lambda run: (run["config"]["granularity"], run["config"]["amount"], run["achieved"]["recovery_seconds"])
    )
    rows = []
    for run in own:
        config, recovery = run["config"], run["config"]["recovery"]
        rounds = config.get("rounds", 1)
        schedule = f"{config['schedule']}, {rounds} rounds" if rounds > 1 else "one-shot"
        loss = f"{recovery['kind']} ({recovery['loss']})" if "loss" in recovery else "none"
        seconds = run["achieved"].get("recovery_cpu_seconds", run["achieved"]["recovery_seconds"])
        cost = [str(recovery.get("steps", 0)), f"{seconds:.0f}"]
        row = [config["granularity"], percent(run["achieved"]["unit_rate"]), schedule, loss, *cost]
        rows.append(row + [value(record(run, metric), digits) for metric, digits in RECOVERED.values()])
    heads = ["unit", "removed", "schedule", "recovery", "steps", "CPU seconds", *RECOVERED]
    return wide(f"Recovery of {model}", heads, rows) + (
        "\n\nBy magnitude, rounds without training in between end where one shot ends: there is no row of their own."
    )


RECOVERED = {
    "prediction error": ("prediction_error", 3),
    "PSNR, dB": ("psnr", 1),
    "feature cosine": ("feature_cosine", 3),
    "kernel distance": ("kernel_distance", 4),
    "top 5, seen": ("retrieval_top5_seen", 2),
}


def composition(runs: list[dict], model: str) -> str:
    """Pruned, partner, both; whether the errors stay apart."""
    dense, rows = runs[0], []
    whole = dense["achieved"]["macs"] * dense["config"]["sampler"]["steps"]
    for run, found in composed(runs):
        rows.append(
            [run["config"]["granularity"], percent(run["achieved"]["unit_rate"]), run["config"]["partner"]]
            + [f"{error:.3f}" for error in found[:3]]
            + ["{:.2f} ({:.2f} to {:.2f})".format(*ratio) for ratio in (found.to_independent, found.to_aligned)]
            + [found.verdict, f"{run['achieved']['macs_per_picture'] / whole:.2f}"]
            + [f"{run['achieved']['weight_bytes'] / dense['achieved']['bytes']:.2f}"]
            + [value(record(run, "retrieval_top5_seen"), 2)]
        )
    head = ["unit", "removed", "with", "error pruned", "error partner", "error both", "to independent", "to aligned"]
    head += ["verdict", "MACs a picture", "file", "top 5, seen"]
    floor = value(record(dense, "picture_error_other_noise"), 3)
    note = (
        f"Error of the picture from other noise: {floor}. *To independent* is c / (a + b), *to aligned* sqrt(c) / "
        "(sqrt(a) + sqrt(b)); a, b and c are the mean squared errors of pruned, partner and both. The columns of "
        "errors hold their roots, pixels between 0 and 1. MACs and file are shares of the dense model's; nothing "
        "here was timed."
    )
    return f"{note}\n\n" + wide(f"Composition for {model}", head, rows)


def second_seed(runs: list[dict], model: str, files: Files) -> str:
    """What is measured of a second training, beside the first: where the first stands alone, and from other noise."""
    dense, second = runs
    rows = []
    for found in second["quality"]:
        digits = 4 if found["metric"] == "kernel_distance" else 3
        other = record(dense, f"{found['metric']}_other_noise") or {"value": found.get("floor")}
        floor = "-" if other["value"] is None else f"{other['value']:.{digits}f}"
        rows.append([found["metric"], value(found, digits), value(record(dense, found["metric"]), digits), floor])
    name = f"quality/second-{model}.png"
    strips = [("dense", _strip(dense)), ("second training", _strip(second))]
    files[GENERATED / name] = grid(strips, dense["config"]["prompts"][:GRID_WIDTH])
    figures = table(["metric", "second model", "model that ships", "from other noise"], rows)
    return f"{figures}\n\n![The same prompts and noise, by both trainings]({name})"
