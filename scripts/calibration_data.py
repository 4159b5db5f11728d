"""The section on how much calibration data a criterion needs: a table and a sentence, from runs of `calibration`."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from reference.bench.results import percent
from reference.request import WITHOUT_DATA
from scripts import figures_quality
from scripts.figures import measured
from scripts.figures import shown as chart_or_command
from scripts.runs import Row

INTRODUCTION = (
    "The same criteria, calibrated on more and more prompts, each number of them drawn three times with other noise. "
    "*Agreement* is the share of removed units that two draws have in common, out of those that either removes, mean "
    "over layers: at 1 the data does not matter; a criterion near `random` follows the noise of its data. The error "
    "says whether that matters: units of equal worth may well be exchanged."
)
COMMAND = "python -m reference.bench --suite engine --protocol calibration"
REWRITING = ("obs", "obs-diff")  # they also change the weights that stay
HEADS = ("Removed", "Criterion", "Prompts", "Error, fewest prompts", "Error, most", "Enough", "Agreement")


def section(rows: Iterable[Row]) -> str:
    """Markdown of the section."""
    rows = list(rows)
    found = places(measured(rows, "calibration"))
    parts = ["## How much calibration data?", INTRODUCTION]
    if found:
        parts += [sentence(found), table(found)]
    return "\n\n".join([*parts, chart_or_command(figures_quality.calibration(rows), "Calibration data", COMMAND)])


def places(rows: Iterable[Row]) -> list[list[Row]]:
    """The runs of each unit and criterion that looks at data, by rising number of prompts."""
    place = lambda row: (row.model, row.unit, row.amount, row.criterion, row.scope or "")  # noqa: E731
    seeing = [row for row in rows if row.criterion not in WITHOUT_DATA]
    ordered = sorted(seeing, key=lambda row: (place(row), prompts(row)))
    return [list(runs) for _, runs in groupby(ordered, place)]


def prompts(row: Row) -> int:
    return row.run["config"]["calibration"]["prompts"]


def enough(runs: Sequence[Row]) -> Row:
    """The run with the fewest prompts from which on every error is not told from that with the most."""
    last = runs[-1].quality("prediction_error")["ci95"]
    for number in range(len(runs) - 1, 0, -1):
        low, high = runs[number - 1].quality("prediction_error")["ci95"]
        if low > last[1] or high < last[0]:
            return runs[number]
    return runs[0]


def sentence(found: Sequence[Sequence[Row]]) -> str:
    """How far few prompts get the criteria that only choose, and those that also rewrite."""
    rewriting = [runs for runs in found if runs[0].criterion in REWRITING]
    choosing = [runs for runs in found if runs[0].criterion not in REWRITING]
    few = prompts(found[0][0])
    told = [sum(enough(runs) is runs[0] for runs in group) for group in (choosing, rewriting)]
    errors = [[run.quality("prediction_error")["value"] for run in runs] for runs in rewriting]
    falls = [1 - error[-1] / error[0] for error in errors]
    more = (
        f" From {few} prompts to the most it falls by {percent(min(falls))} to {percent(max(falls))}." if falls else ""
    )
    names = "`, `".join(sorted({runs[0].criterion for runs in rewriting}))
    return (
        f"**Criteria that only choose**: in {told[0]} of {len(choosing)} places the error with {few} prompts is not "
        f"told from that with the most. **Criteria that also rewrite** what stays (`{names}`): in {told[1]} of "
        f"{len(rewriting)}.{more}"
    )


def table(found: Iterable[Sequence[Row]]) -> str:
    """One line a unit and criterion."""
    lines = [HEADS, ["---"] * len(HEADS)]
    for runs in found:
        first, last = runs[0], runs[-1]
        errors, agreements = (
            [run.quality(metric) for run in (first, last)] for metric in ("prediction_error", "agreement")
        )
        lines.append(
            [
                f"{first.unit} {percent(first.amount)}",
                ", ".join(filter(None, [first.criterion, first.scope])),
                ", ".join(str(prompts(run)) for run in runs),
                *(f"{e['value']:.3f} ({e['ci95'][0]:.3f} to {e['ci95'][1]:.3f})" for e in errors),
                str(prompts(enough(runs))),
                " to ".join(f"{a['value']:.2f}" for a in agreements),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + (
        "\n\n*Enough*: the fewest prompts from which on the interval of the error meets that with the most prompts. "
        "The chart has the numbers between."
    )
