"""`python -m reference.bench.second_seed FOLDER`: how far apart are two models that differ in their seed alone?

Draws with the model that ships and with the one in FOLDER from the same noise and prompts, and writes what the quality
suite writes for a pruned model: fidelity, distance to the drawings, retrieval. A pruned model that is no further from
the dense one than this is as good as another training. Both answer with their own text encoder, so the prediction error
compares what they make of the same prompt, picture and time.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from reference.bench import measure, quality, results
from reference.bench.__main__ import PROTOCOLS, print_table
from reference.bench.device import ROOT, device_folder
from reference.bench.judge import Judge, open_judge
from reference.bench.quality_cells import Cell
from reference.embedded import EMBEDDED, on_device
from reference.embedded.pipeline import EmbeddedPipeline


def compare(judge: Judge, model: str, second: EmbeddedPipeline, folder: Path, facts: dict) -> list[dict]:
    """The results of the model that ships and of the second one; `facts` say what the second is."""
    judge = judge.of(model)
    protocol = judge.protocol
    first, runs = quality.open_subject(judge, model, None, folder)
    if type(second.denoiser) is not type(first.dense.denoiser):
        raise ValueError(f"the second model is a {type(second.denoiser).__name__}, {model} another class")
    start = time.monotonic()
    run = quality.frame(judge, Cell(model, "second seed", facts), first.run_id)
    run["achieved"] = quality.size(second, protocol)
    prompts = judge.names * len(protocol["noise_seeds"])
    noise = measure.noise(second, len(judge.names), protocol["noise_seeds"])
    pictures = measure.draw(second, prompts, noise, **protocol["sampler"])
    wrong = measure.prediction_error(second.denoiser, as_told_by(second, first.trajectory, prompts))
    run["quality"] = [{"metric": "prediction_error"} | wrong]
    run["quality"] += [
        record | {"floor": first.floor[record["metric"]]}
        for record in judge.records(pictures, first.trajectory.pictures)
    ]
    return [*runs, quality.finish(run, pictures[: quality.PICTURES], folder, start)]


def as_told_by(pipeline: EmbeddedPipeline, trajectory: measure.Trajectory, prompts: list[str]) -> measure.Trajectory:
    """The same calls with the prompts encoded by this pipeline."""
    with torch.no_grad():
        hidden, pooled = pipeline.encode_prompt([""] * len(prompts) + prompts)
    told = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
    calls = [
        (keywords | {name: value for name, value in told.items() if name in keywords}, output)
        for keywords, output in trajectory.calls
    ]
    return trajectory._replace(calls=calls)


def main(arguments: list[str] | None = None) -> int:
    """Compare, write two results, print them; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m reference.bench.second_seed", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a pipeline trained with another seed, or what train wrote around it")
    parser.add_argument("--model", choices=EMBEDDED, help="what it is compared with; left out, the one of its class")
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder of the result files")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    inside = options.folder / "pipeline"
    options.folder = inside if inside.is_dir() else options.folder
    try:
        second = EmbeddedPipeline.from_pretrained(options.folder, dtype=torch.float32, use_safetensors=True)
        second = on_device(second, options.device)
        second.set_progress_bar_config(disable=True)
        kind = "mmdit" if second.unet is None else "unet"
        judge = open_judge((PROTOCOLS / "quality-second-seed.yaml").read_text(), device=options.device)
        facts = {"second_weights": results.fingerprint(options.folder)}
        folder = options.out / "quality" / device_folder(options.device)
        runs = compare(judge, options.model or f"openmoji-{kind}", second, folder, facts)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [[r["metric"], f"{r['value']:.4f}", "{:.4f} to {:.4f}".format(*r["ci95"])] for r in runs[-1]["quality"]]
    print_table([["metric", "second against first", "95 % interval"], *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
