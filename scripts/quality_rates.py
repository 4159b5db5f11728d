"""How much of each component can go: the founding note's rates beside the measured ones, and what ends a rate."""

from collections import Counter

from reference.bench.results import value
from scripts.quality_rules import Limits, at_most, founding_note, limits
from scripts.quality_runs import by_model, dense_of, measured, protocol, record, table


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
    """What ends the safe rates, model by model, and how much either rule asks."""
    lines = []
    for model, own in by_model(runs).items():
        ends = Counter(" and ".join(limit.ended_by) for limit in found if limit.ended_by and limit.model == model)
        if not (dense := dense_of(own)) or not ends:
            continue
        counted = ", ".join(f"{what} in {n}" for what, n in ends.most_common())
        total = sum(limit.model == model for limit in found)
        floor = value(record(dense, "psnr_other_noise"), 1)
        lines.append(
            f"- `{model}`: {counted} (of {total} rows). Two dense pictures from different noise agree to {floor} dB."
        )
    return "\n".join(
        [
            "What was lost at the first rate that is not safe (*retrieval*: names; *fidelity*: closeness):",
            "",
            *lines,
            "",
            "The nearer a model's pictures from different noise are, the less pruning may move them: compare rates "
            f"within a model, not between models. {_names_lost(runs)} Magnitude is the yardstick, not the best "
            "criterion; at equal rates others move the prediction less: [criteria compared](criteria.md).",
            "",
            "What holds of each rate of the founding note:",
        ]
    )


def _names_lost(runs: list[dict]) -> str:
    """How many names a run may lose and still keep within the rule of safe rates, as the runs show it."""
    allowed = protocol("quality-components")["rules"]["safe"]["retrieval_top5_seen_change"]
    changes = [found for run in measured(runs) if (found := record(run, "retrieval_top5_seen_change"))]
    kept = [round(-found["value"] * found["n"]) for found in changes if found["ci95"][0] > allowed]
    names = changes[0]["n"] if changes else 0
    return f"With {names} names the rule lets {max(*kept, 0)} go at most, gains set off." if len(kept) > 1 else ""


def summary(runs: list[dict]) -> str:
    """The same for README, without the sentences."""
    if not (found := limits(runs)):
        return ""
    return (
        f"**How much of each component can go**, in these small models. {_rule()} Magnitude is the yardstick, not the "
        "best criterion. What ended each rate stands on the site, under *Quality against rate*.\n\n"
        f"{rates_table(found)}"
    )


def _rule() -> str:
    """What `safe` and `aggressive` mean, with the numbers of the protocol file."""
    rules = protocol("quality-components")["rules"]
    lost, left = -rules["safe"]["retrieval_top5_seen_change"], rules["aggressive"]["retrieval_top5_seen_left"]
    return (
        "An evaluator, a small network of its own, guesses each picture's name. **Safe** is the highest tested rate "
        f"up to which every tested one loses no more than {100 * lost:.0f} of 100 names among its first 5 guesses "
        "(lower end of the paired interval) and stays closer to the dense picture than other noise does (PSNR, SSIM "
        f"and feature cosine); **aggressive** the highest up to which {100 * left:.0f} % of the dense model's names "
        "are still found (lower end). Only the named component is pruned, by magnitude, and nothing is trained "
        "afterwards. The rules were written before the first run."
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
