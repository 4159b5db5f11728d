"""The parts of the quality page: each makes Markdown of one model's runs, and adds its pictures to `files`."""

from pathlib import Path

from scripts.pictures import grid
from scripts.quality_charts import curve_groups
from scripts.quality_charts import curves as chart
from scripts.quality_rules import at_most, compose, founding_note, limits
from scripts.quality_runs import measured, percent, protocol, record, shown, table
from scripts.text import esc

FOLDER = Path("site") / "generated" / "quality"
GRID_RATES, GRID_WIDTH = (0.3, 0.5, 0.7), 10

Files = dict[Path, str | bytes]


def curves(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    """A chart and its table for each granularity."""
    parts = [
        f"Dense: {shown(record(dense, 'retrieval_top5_seen'), 2)} of the names of seen prompts among the first five, "
        f"{shown(record(dense, 'retrieval_top5_unseen'), 2)} of unseen ones; other noise: PSNR "
        f"{shown(record(dense, 'psnr_other_noise'), 1)} dB."
    ]
    for granularity, own in curve_groups(runs).items():
        name = f"quality-{model}-{granularity.replace(':', '-')}"
        if len({run["achieved"]["unit_rate"] for run in own}) > 1:
            files[FOLDER / f"{name}.svg"] = chart(own, dense)
            parts.append(f"![{granularity}: prediction error, PSNR and retrieval over rate](quality/{name}.svg)")
        rows = [[_criterion(run), percent(run["config"]["amount"]), *_row(run, dense)] for run in own]
        parts.append(f"**{granularity}**\n\n" + table(["criterion", "asked", *ROW], rows))
    refused = [run for run in runs if run["status"] != "ok"]
    if refused:
        reasons = dict.fromkeys(f"{run['config'].get('granularity')}: {esc(run['error'])}" for run in refused)
        parts.append("Refused or failed: " + "; ".join(reasons) + ".")
    return "\n\n".join(parts)


ROW = ["units removed", "parameters removed", "prediction error", "PSNR, dB", "feature cosine", "kernel distance"]
ROW += ["top 5, seen", "top 5, unseen"]
METRICS = (("prediction_error", 3), ("psnr", 1), ("feature_cosine", 3), ("kernel_distance", 3))
METRICS += (("retrieval_top5_seen", 2), ("retrieval_top5_unseen", 2))


def _row(run: dict, dense: dict) -> list[str]:
    left = run["achieved"]["nonzero"] / dense["achieved"]["nonzero"]
    return [percent(run["achieved"]["unit_rate"]), f"{100 * (1 - left):.1f} %"] + [
        shown(record(run, metric), digits) for metric, digits in METRICS
    ]


def _criterion(run: dict) -> str:
    scope = run["config"].get("scope")
    return run["config"]["criterion"] + (f" ({scope})" if scope else "")


def grids(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    """The first prompts, dense and every entry, at three rates."""
    parts = []
    for rate in GRID_RATES:
        near = [run for run in measured(runs) if run["artifacts"] and abs(run["config"]["amount"] - rate) < 0.045]
        near.sort(key=lambda run: (run["config"]["granularity"], run["config"]["criterion"]))
        strips = [("dense", _strip(dense))]
        strips += [(f"{run['config']['granularity']}, {_criterion(run)}", _strip(run)) for run in near]
        if len(strips) > 1:
            name = f"quality-grid-{model}-{percent(rate)[:2]}.png"
            files[FOLDER / name] = grid(strips, dense["config"]["prompts"][:GRID_WIDTH])
            parts.append(f"At {percent(rate)}:\n\n![Dense and every entry at {percent(rate)}](quality/{name})")
    return "\n\n".join(parts) or "No pictures at 30, 50 or 70 % yet."


def _strip(run: dict) -> Path:
    return run["path"].parent / run["artifacts"][0]["path"]


def measured_rates(runs: list[dict]) -> str:
    """The founding note's table beside the measured one, a sentence a row."""
    found = limits(runs)
    rules = protocol("quality-components")["rules"]
    lost, left = -rules["safe"]["retrieval_top5_seen_change"], rules["aggressive"]["retrieval_top5_seen_left"]
    text = (
        "**Safe** is the highest tested rate up to which every tested one loses no more than "
        f"{100 * lost:.0f} points of retrieval (lower end of the paired interval) and stays closer to the dense "
        f"picture than other noise does; **aggressive** the highest up to which {100 * left:.0f} % of the dense "
        "model's retrieval is left (lower end). Only the named component is pruned, by magnitude, nothing is trained "
        "afterwards. The rules were written before the first run."
    )
    rows = [
        [limit.component, limit.granularity, f"`{limit.model}`"]
        + [at_most(getattr(limit, column), limit.tested) for column in ("safe", "aggressive")]
        + [", ".join(f"{claim}" for claim in _claims(limit.component))]
        for limit in found
    ]
    measured_table = table(["component", "unit", "model", "safe", "aggressive", "founding note"], rows)
    sentences = [
        f"- {component}, {claim}: **{verdict}**" + (f" ({numbers})." if numbers else ".")
        for component, claim, verdict, numbers in founding_note(found)
    ]
    return "\n\n".join([text, measured_table, "\n".join(sentences)])


def _claims(component: str) -> list[str]:
    claims = protocol("quality-components")["founding_note"].get(component, {})
    return [f"{column} {100 * low:.0f}-{100 * high:.0f} %" for column, (low, high) in claims.items()] or [
        "says nothing"
    ]


def components(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    parts = []
    for component in dict.fromkeys(run["config"]["component"] for run in measured(runs)):
        own = sorted(measured(runs, component=component), key=lambda run: run["achieved"]["unit_rate"])
        name = f"quality-components-{model}-{component}"
        files[FOLDER / f"{name}.svg"] = chart(own, dense, "granularity")
        parts.append(f"![{component} alone: prediction error, PSNR and retrieval over rate](quality/{name}.svg)")
        own.sort(key=lambda run: run["config"]["granularity"])
        rows = [[run["config"]["granularity"], *_row(run, dense)[:-1]] for run in own]
        parts.append(f"**{component}**\n\n" + table(["unit", *ROW[:-1]], rows))
    return "\n\n".join(parts)


def recovery(runs: list[dict], dense: dict, model: str, files: Files) -> str:
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
        seconds = run["achieved"]["recovery_seconds"]
        cost = [str(recovery.get("steps", 0)), f"{seconds:.0f}"]
        row = [config["granularity"], percent(run["achieved"]["unit_rate"]), schedule, loss, *cost]
        rows.append(row + [shown(record(run, metric), digits) for metric, digits in METRICS[:4]])
        rows[-1].append(shown(record(run, "retrieval_top5_seen"), 2))
    head = ["unit", "removed", "schedule", "recovery", "steps", "seconds", *ROW[2:7]]
    return table(head, rows) + (
        "\n\nBy magnitude, rounds without training in between end where one shot ends: there is no row of their own."
    )


def composition(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    """Pruned, partner, both; whether the errors stay apart."""
    own = measured(runs)
    alone = {run["config"]["partner"]: run for run in own if "granularity" not in run["config"]}
    pruned = {(r["config"]["granularity"], r["config"]["amount"]): r for r in own if "partner" not in r["config"]}
    whole = dense["achieved"]["macs"] * dense["config"]["sampler"]["steps"]
    rows = []
    for run in own:
        config = run["config"]
        key = config.get("granularity"), config.get("amount")
        if config.get("partner") not in alone or key not in pruned:
            continue
        found = compose(pruned[key], alone[config["partner"]], run, dense)
        rows.append(
            [config["granularity"], percent(run["achieved"]["unit_rate"]), config["partner"]]
            + [f"{error:.3f}" for error in found[:3]]
            + ["{:.2f} ({:.2f} to {:.2f})".format(*ratio) for ratio in (found.to_independent, found.to_aligned)]
            + [f"**{found.verdict}**", f"{run['achieved']['macs_per_picture'] / whole:.2f}"]
            + [f"{run['achieved']['weight_bytes'] / dense['achieved']['bytes']:.2f}"]
            + [shown(record(run, "retrieval_top5_seen"), 2)]
        )
    rules = "; ".join(f"**{name}**: {text}" for name, text in protocol("quality-composition")["rules"].items())
    head = ["unit", "removed", "with", "error pruned", "error partner", "error both", "to independent", "to aligned"]
    head += ["verdict", "MACs a picture", "file", "top 5, seen"]
    floor = shown(record(dense, "picture_error_other_noise"), 3)
    return f"{rules}. Other noise: {floor}.\n\n" + table(head, rows)


def second_seed(runs: list[dict], dense: dict, model: str, files: Files) -> str:
    """The noise floor between equal models."""
    rows = [[record_["metric"], shown(record_, 3)] for run in measured(runs) for record_ in run["quality"]]
    return (
        "The same training with another seed, against the model that ships. A pruned model that is no further from the "
        "dense one than this is as good as trained again.\n\n"
        + table(["metric", "second model against the first"], rows)
    )
