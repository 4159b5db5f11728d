"""The pages of the quality evidence: quality.md, recovery.md and damage.md in site/generated/, and their grids.

Every number comes from a result file under results/quality/; a part without runs says so and names its command. torch
is not needed.
"""

from collections.abc import Callable, Sequence

from scripts import (
    charts,
    figures_compared,
    figures_damage,
    figures_quality,
    quality_found,
    quality_parts,
    quality_rates,
    subjects,
)
from scripts.charts import Chart
from scripts.figures import shown
from scripts.quality_parts import Files
from scripts.quality_runs import by_model, dense_of, of_protocol, protocol, record
from scripts.runs import Row
from scripts.text import NOTE

COMMAND = "python -m reference.bench --suite quality --protocol {} --resume"
CREDIT = "Drawings: [OpenMoji](https://openmoji.org), CC BY-SA 4.0; pictures by models trained on them, same licence."
ERROR = (
    "Pruned models draw from the same noise and prompts as the dense one. *Prediction error*: relative to the dense "
    "model's prediction along its own runs; 0 is the dense model, 1 the error of predicting nothing."
)
RETRIEVAL = (
    "*Retrieval*: the share of pictures whose name a separate small network finds among its first 5 guesses; *seen* "
    "names were in the training. *Other noise*: the dense model against itself from other noise; a picture no nearer "
    "than that is another picture."
)
INTERVALS = (
    "Intervals are 95 % bootstraps over prompts: they hold what other prompts would change, not another calibration or "
    "another training. How it is measured: [the protocols](../benchmarks.md), [method and limits](../method.md)."
)


def drawn(rows: Sequence[Row]) -> dict[str, list[Chart | None]]:
    """The charts of each page; None where no run has what one needs."""
    return {
        "quality": [figures_quality.components(rows), figures_quality.curves(rows)],
        "recovery": [figures_compared.recoveries(rows), figures_compared.compositions(rows)],
        "damage": [figures_damage.damage(rows, name) for name in ("quality-layers", "quality-steps")],
    }


def pages(rows: Sequence[Row]) -> tuple[dict[str, str], Files]:
    """Name of a page -> Markdown; and the grids that they show, by path below the root."""
    grids: Files = {}
    about = [subjects.sentence(rows), f"{ERROR} {RETRIEVAL} {INTERVALS}"]
    (components, curves), (recoveries, compositions), (layers, steps) = drawn(rows).values()
    texts = {
        "quality": [
            "# Quality against rate",
            *about,
            "Nothing is trained after pruning; what training buys: [recovery](recovery.md).",
            "## What each component can lose",
            _basis(rows, "quality-components"),
            quality_rates.measured_rates(of_protocol(rows, "quality-components")),
            shown(components, "Components, each pruned alone", COMMAND.format("quality-components")),
            "## Every granularity and criterion",
            _basis(rows, "quality"),
            shown(curves, "Rate curves", COMMAND.format("quality")),
            "## The best criterion of each",
            "By the prediction error. Where intervals overlap, the runs do not tell the criteria apart. `obs` and "
            "`obs-diff` also rewrite the weights that stay; the others only choose. More criteria and units at one "
            "rate each: [criteria compared](criteria.md).",
            _found(rows, "quality", quality_found.criteria),
            _models(rows, "quality", quality_parts.best),
            "## Pictures",
            _models(rows, "quality", lambda runs, model: quality_parts.grids(runs, model, grids)),
            "## Two equal models",
            quality_parts.SECOND_SEED,
            _models(rows, "quality-second-seed", lambda runs, model: quality_parts.second_seed(runs, model, grids)),
            _as_far(rows),
            "## Again, with another seed",
            _again(rows),
            CREDIT,
        ],
        "recovery": [
            "# Recovery and composition",
            *about,
            "## What training afterwards buys",
            _basis(rows, "quality-recovery"),
            _found(rows, "quality-recovery", quality_found.recovery),
            shown(recoveries, "Recovery", COMMAND.format("quality-recovery")),
            _models(rows, "quality-recovery", quality_parts.recovery),
            "## Pruning with something else",
            _basis(rows, "quality-composition"),
            _found(rows, "quality-composition", quality_found.composition),
            quality_parts.COMPOSITION,
            shown(compositions, "Pruning with a partner", COMMAND.format("quality-composition")),
            _models(rows, "quality-composition", quality_parts.composition),
        ],
        "damage": [
            "# Damage maps",
            about[0],
            f"{ERROR} {INTERVALS}",
            "## Where it hurts: layers",
            _basis(rows, "quality-layers"),
            _found(rows, "quality-layers", quality_found.damage),
            shown(layers, "Damage map of layers", COMMAND.format("quality-layers")),
            "## When it hurts: blocks and steps",
            _basis(rows, "quality-steps"),
            _found(rows, "quality-steps", quality_found.damage),
            shown(steps, "Damage map of steps", COMMAND.format("quality-steps")),
        ],
    }
    head = f"---\nhide: [toc]\n---\n\n<!-- {NOTE.format(source='results/')} -->"
    return {
        name: "\n\n".join([head, *filter(None, parts), charts.loaders(name), ""]) for name, parts in texts.items()
    }, grids


def _basis(rows: Sequence[Row], name: str) -> str:
    """What the runs of a protocol have in common, and how to repeat them."""
    own = of_protocol(rows, name)
    if not own:
        return ""
    config = own[0]["config"]
    guided = ", ".join(f"{g:g}" for g in dict.fromkeys(run["config"]["sampler"]["guidance"] for run in own))
    parts = [
        f"{len(own)} runs of protocol `{own[0]['protocol']['id']}`: {config['sampler']['steps']} steps, "
        f"{len(config['prompts'])} prompts, {_draws(config)}, {config['dtype']}, guidance "
        f"{guided} (each model's own), {own[0]['environment']['cpu']}.",
        quality_found.so_far(own, name),
        f"Repeat it: `{COMMAND.format(name)}`.",
    ]
    return " ".join(filter(None, parts))


def _draws(config: dict) -> str:
    """`each drawn once`, or from how many noises."""
    count = len(config["noise_seeds"])
    return "each drawn once" if count == 1 else f"each drawn from {count} noises"


def _models(rows: Sequence[Row], name: str, part: Callable[[list[dict], str], str]) -> str:
    """A part made for each model from its runs of a protocol."""
    parts = []
    for model, runs in by_model(of_protocol(rows, name)).items():
        if dense_of(runs) is not None and len(runs) > 1:
            parts += [f"### `{model}`", part(runs, model)]
    command = "python -m reference.bench.second_seed FOLDER" if name == "quality-second-seed" else COMMAND.format(name)
    return "\n\n".join(parts) or f"Not measured yet: `{command}`."


def _found(rows: Sequence[Row], name: str, part: Callable[[list[dict]], str]) -> str:
    """What came out, a paragraph a model; empty without runs."""
    texts = {model: part(runs) for model, runs in by_model(of_protocol(rows, name)).items() if dense_of(runs)}
    return "\n\n".join(f"`{model}`: {text}" for model, text in texts.items() if text)


def _as_far(rows: Sequence[Row]) -> str:
    """Pruned models beside the second training, a paragraph a model; empty without both."""
    curves = by_model(of_protocol(rows, "quality"))
    texts = {
        model: quality_found.as_far(curves.get(model, []), runs[-1])
        for model, runs in by_model(of_protocol(rows, "quality-second-seed")).items()
    }
    return "\n\n".join(f"`{model}`: {text}" for model, text in texts.items() if text)


def _again(rows: Sequence[Row]) -> str:
    """How often the numbers of another seed lie inside the intervals of the first."""
    seeds = sorted({row.run["config"].get("seed") or 0 for row in rows if row.suite == "quality"} - {0})
    sentences = []
    for name in ("quality", "quality-components", "quality-recovery", "quality-composition"):
        first = {_without_seed(run): run for run in of_protocol(rows, name)}
        for seed in seeds:
            inside = [
                was["ci95"][0] <= found["value"] <= was["ci95"][1]
                for run in of_protocol(rows, name, seed)
                if _without_seed(run) in first
                for found in run["quality"]
                if (was := record(first[_without_seed(run)], found["metric"]))
            ]
            if inside:
                sentences.append(
                    f"- `{protocol(name)['id']}`, seed {seed}: {sum(inside)} of {len(inside)} values "
                    f"({100 * sum(inside) / len(inside):.0f} %) lie inside the 95 % interval of seed 0."
                )
    if sentences:
        sentences.append(
            "\nTwo measurements of one quantity with independent errors would lie so in 83 % of cases, not in 95 %: "
            "the second has an error of its own."
        )
    return "\n".join(sentences) or f"Not measured yet: `{COMMAND.format('quality')} --seed 1`."


def _without_seed(run: dict) -> str:
    config = {key: value for key, value in run["config"].items() if not key.endswith(("seed", "seeds"))}
    return repr((run["subject"]["model"], sorted(config.items(), key=repr)))
