"""The page of the quality evidence, site/generated/quality.md, with its charts and grids: `python -m scripts.quality`.

Every number comes from a result file under results/quality/; a part without runs says so and names its command. torch
is not needed. `python -m scripts.render` writes the same.
"""

from collections.abc import Callable
from pathlib import Path

from scripts import catalog, quality_maps, quality_parts
from scripts.quality_parts import Files
from scripts.quality_runs import by_model, dense_of, of_protocol, protocol, read, record
from scripts.text import NOTE, write

PAGE = Path("site") / "generated" / "quality.md"
CREDIT = "Drawings: [OpenMoji](https://openmoji.org), CC BY-SA 4.0; pictures by models trained on them, same licence."


def build(root: Path = catalog.ROOT) -> Files:
    """The page and its pictures, by path below the root."""
    runs, files = read(root / "results"), {}
    parts = [
        "---\nhide: [toc]\n---",
        "# Quality against rate",
        f"<!-- {NOTE.format(source='results/')} -->",
        "Two small models trained on OpenMoji drawings, pruned in every way, drawing from the same noise and prompts "
        "as the dense model. Intervals: 95 % bootstraps over prompts. Dashed lines, and *other noise*: the dense model "
        "against itself from other noise; below that a picture is as far from the dense one as another draw. Nothing "
        "is trained after pruning unless a row says so. How it is measured: [benchmarks](../benchmarks.md).",
        _section("Rate curves", "quality", runs, quality_parts.curves, files),
        _section("Pictures", "quality", runs, quality_parts.grids, files),
        _section("Which component stands what", "quality-components", runs, quality_parts.components, files),
        _section("Training afterwards", "quality-recovery", runs, quality_parts.recovery, files),
        _section("Pruning with something else", "quality-composition", runs, quality_parts.composition, files),
        _section("Where it hurts: layers", "quality-layers", runs, quality_maps.layers, files),
        _section("When it hurts: blocks and steps", "quality-steps", runs, quality_maps.steps, files),
        _section("Two equal models", "quality-second-seed", runs, quality_parts.second_seed, files),
        "## Again, with another seed\n\n" + _again(runs),
        CREDIT,
    ]
    return files | {PAGE: "\n\n".join(parts) + "\n"}


def _section(title: str, name: str, runs: list[dict], part: Callable[..., str], files: Files) -> str:
    """A part of the page from the runs of its protocol; `part(own, dense, model, files)` makes that of one model."""
    own = of_protocol(runs, name)
    command = f"python -m reference.bench --suite quality --protocol {name} --resume"
    if name == "quality-second-seed":
        command = "python -m reference.bench.second_seed FOLDER"
    parts = []
    for model, found in by_model(own).items():
        dense = dense_of(found)
        if dense is not None and len(found) > 1:
            heading = f"### `{model}` {{ #{name}-{title.split()[0].lower()}-{model} }}"
            guidance = f"Guidance {dense['config']['sampler']['guidance']:g}, the model's own."
            parts += [heading, guidance, part(found, dense, model, files)]
    if not parts:
        return f"## {title}\n\nNot measured yet: `{command}`."
    config = own[0]["config"]
    head = (
        f"{len(own)} runs of protocol `{own[0]['protocol']['id']}`: {config['sampler']['steps']} steps, "
        f"{len(config['prompts'])} prompts x {len(config['noise_seeds'])} noise "
        f"seeds, {config['dtype']}, {own[0]['environment']['cpu']}. Repeat it: `{command}`."
    )
    if name == "quality-components":
        parts = [quality_parts.measured_rates(own), *parts]
    return "\n\n".join([f"## {title}", head, *parts])


def _again(runs: list[dict]) -> str:
    """How often the numbers of another seed lie inside the intervals of the first."""
    seeds = sorted({run["config"].get("seed", 0) for run in runs} - {0})
    sentences = []
    for name in ("quality", "quality-components", "quality-recovery", "quality-composition"):
        first = {_without_seed(run): run for run in of_protocol(runs, name)}
        for seed in seeds:
            inside = [
                was["ci95"][0] <= found["value"] <= was["ci95"][1]
                for run in of_protocol(runs, name, seed)
                if _without_seed(run) in first
                for found in run["quality"]
                if (was := record(first[_without_seed(run)], found["metric"]))
            ]
            if inside:
                sentences.append(
                    f"- `{protocol(name)['id']}`, seed {seed}: {sum(inside)} of {len(inside)} values "
                    f"({100 * sum(inside) / len(inside):.0f} %) lie inside the 95 % interval of seed 0."
                )
    if not sentences:
        command = "python -m reference.bench --suite quality --protocol quality --seed 1 --resume"
        return f"Not measured yet: `{command}`."
    return "\n".join(sentences)


def _without_seed(run: dict) -> str:
    config = {key: value for key, value in run["config"].items() if not key.endswith(("seed", "seeds"))}
    return repr((run["subject"]["model"], sorted(config.items(), key=repr)))


if __name__ == "__main__":
    for path, content in build().items():
        write(catalog.ROOT / path, content)
