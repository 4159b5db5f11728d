"""The parts of the quality pages that are no charts: each makes Markdown of one model's runs, the dense one first."""

from collections import Counter
from pathlib import Path

from reference.bench.results import percent, value
from scripts.charts import table as wide
from scripts.pictures import grid
from scripts.quality_rules import Limits, at_most, composed, founding_note, limits
from scripts.quality_runs import by_model, dense_of, measured, protocol, record, table

GRID_RATES, GRID_WIDTH = (0.3, 0.5, 0.7), 6

GENERATED = Path("site") / "generated"
Files = dict[Path, bytes]

SECOND_SEED = (
    "The same training with another seed, against the model that ships. A pruned model that is no further from the "
    "dense one than this is as good as trained again."
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
    "error of the prediction": ("prediction_error", 3),
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


def measured_rates(runs: list[dict]) -> str:
    """The founding note's table beside the measured one, and a sentence on each of its claims."""
    if not (found := limits(runs)):
        return ""
    verdicts = table(
        ["component", "the founding note", "verdict", "reached"],
        [
            [_words(component), claim, f"**{word}**", numbers or "-"]
            for component, claim, word, numbers in founding_note(found)
        ],
    )
    return "\n\n".join([_rule(), rates_table(found), _ended(found, runs), verdicts])


def _ended(found: list[Limits], runs: list[dict]) -> str:
    """What ends the safe rates."""
    ends = Counter(" and ".join(limit.ended_by) for limit in found if limit.ended_by)
    counted = ", ".join(f"{what} in {n}" for what, n in ends.most_common())
    floors = [
        f"{value(record(dense, 'psnr_other_noise'), 1)} dB for `{model}`"
        for model, own in by_model(runs).items()
        if (dense := dense_of(own))
    ]
    return (
        f"What was lost at the first rate that is not safe, in {ends.total()} of {len(found)} cases: {counted}. How "
        f"much fidelity asks: two dense pictures of one name from different noise agree to {', '.join(floors)}. What "
        "holds of each rate of the founding note:"
    )


def summary(runs: list[dict]) -> str:
    """The same for README, without the sentences."""
    if not (found := limits(runs)):
        return ""
    return f"**How much of each component can go.** {_rule()}\n\n{rates_table(found)}"


def _rule() -> str:
    """What `safe` and `aggressive` mean, with the numbers of the protocol file."""
    rules = protocol("quality-components")["rules"]
    lost, left = -rules["safe"]["retrieval_top5_seen_change"], rules["aggressive"]["retrieval_top5_seen_left"]
    return (
        "**Safe** is the highest tested rate up to which every tested one loses no more than "
        f"{100 * lost:.0f} points of retrieval (lower end of the paired interval) and stays closer to the dense "
        f"picture than other noise does; **aggressive** the highest up to which {100 * left:.0f} % of the dense "
        "model's retrieval is left (lower end). Only the named component is pruned, by magnitude. The rules were "
        "written before the first run."
    )


def rates_table(found: list[Limits]) -> str:
    """Component by what was removed of it: the founding note's rates, and those of every model."""
    models = sorted({limit.model for limit in found})
    cells = {(limit.component, limit.granularity, limit.model): limit for limit in found}
    rows = []
    for component, granularity in sorted({key[:2] for key in cells}):
        row = [_words(component), granularity, _note(component)]
        for model in models:
            limit = cells.get((component, granularity, model))
            columns = ("safe", "aggressive") if limit else ()
            row.append(", ".join(at_most(getattr(limit, column), limit.tested) for column in columns) or "-")
        rows.append(row)
    heads = ["component", "removed", "founding note: safe, aggressive", *(f"`{m}`: safe, aggressive" for m in models)]
    return table(heads, rows)


def _words(component: str) -> str:
    return component.replace("_", "-")


def _note(component: str) -> str:
    claims = protocol("quality-components")["founding_note"].get(component, {})
    return ", ".join(f"{100 * low:.0f}-{100 * high:.0f} %" for low, high in claims.values()) or "says nothing"


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
    "kernel distance": ("kernel_distance", 3),
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
    note = f"Error of the picture from other noise: {floor}. MACs and file are shares of the dense model's."
    return f"{note}\n\n" + wide(f"Composition for {model}", head, rows)


def second_seed(runs: list[dict], model: str) -> str:
    """The noise floor between equal models."""
    rows = [[record_["metric"], value(record_, 3)] for run in measured(runs) for record_ in run["quality"]]
    return table(["metric", "second model against the first"], rows)
