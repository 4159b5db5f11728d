"""Command line: `python -m reference prune | compare | recover | train`, each with --help."""

import argparse
import sys
from pathlib import Path

from reference.request import SERVES, WITHOUT_DATA, Request


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 if it worked, 2 with one line on stderr if the input is wrong."""
    parser = argparse.ArgumentParser(prog="python -m reference", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    prune = commands.add_parser("prune", help="prune a model or pipeline and save it")
    prune.add_argument("source", help="openmoji-mmdit, a folder, a hub id, a file, or org/name/path/file.safetensors")
    prune.add_argument("--base-model", help="the pipeline around a file that holds only the denoiser")
    prune.add_argument(
        "--granularity", required=True, help="weight, a pattern such as 2:4, neuron, head, channel, block or rank"
    )
    prune.add_argument("--amount", type=float, help="fraction of the units to remove")
    prune.add_argument("--rank", type=int, help="directions to keep, instead of --amount, for granularity rank")
    prune.add_argument(
        "--component-amount",
        action="append",
        metavar="NAME=RATE",
        default=[],
        help="a rate for one component or fnmatch pattern, e.g. attention=0.3; may be repeated",
    )
    prune.add_argument("--criterion", default="magnitude", help="how units are scored: " + ", ".join(SERVES))
    prune.add_argument("--scope", default="layer", help="row, layer, component or global")
    prune.add_argument("--only", action="append", help="fnmatch pattern of the layers to prune")
    prune.add_argument("--skip", action="append", help="fnmatch pattern of the layers to leave whole")
    prune.add_argument("--prompts", type=Path, help="file of prompts, one a line, for criteria that look at data")
    prune.add_argument("--steps", type=int, default=20, help="denoising steps of a calibration run")
    prune.add_argument("--seed", type=int, default=0, help="of calibration and of the random criterion")
    prune.add_argument("--out", type=Path, required=True, help="folder to write")
    prune.add_argument(
        "--storage", choices=["dense", "sparse"], default="dense", help="sparse: zeros take no room, loads only here"
    )
    prune.add_argument(
        "--out-of-core",
        action="store_true",
        help="stream a local folder tensor by tensor instead of loading it, in the dtype of its files; goes on where a "
        "killed run stopped; chosen by itself where the denoisers' weights are larger than the free memory",
    )

    compare = commands.add_parser("compare", help="how far a pruned pipeline draws from the dense one")
    compare.add_argument("dense", help="openmoji-mmdit, a diffusers folder, or a hub id")
    compare.add_argument("pruned", type=Path, help="folder written by prune")
    compare.add_argument("--prompt", action="append", help="may be repeated")
    compare.add_argument("--prompts", type=Path, help="file of prompts, one a line")
    compare.add_argument("--batch", type=int, default=8, help="pictures drawn at once")
    compare.add_argument("--metrics", help="fid,clip: Inception FID and CLIP score; both fetch a network")
    compare.add_argument("--steps", type=int, default=20)
    compare.add_argument("--seed", type=int, default=0)
    compare.add_argument("--out", type=Path, default=Path("compare.png"), help="dense above pruned, as a picture")

    recover = commands.add_parser("recover", help="train a pruned pipeline on a folder of pictures with captions")
    recover.add_argument("folder", type=Path, help="folder of a pipeline, written by prune")
    recover.add_argument("--data", type=Path, required=True, help="pictures; captions in metadata.jsonl or NAME.txt")
    recover.add_argument("--out", type=Path, help="folder to write; FOLDER-recovered if left out")
    recover.add_argument("--loss", default="task", help="task; output or feature, which ask the dense model")
    recover.add_argument("--dense", help="the model before pruning: openmoji-mmdit, a folder, a hub id")
    recover.add_argument("--steps", type=int, default=1000)
    recover.add_argument("--batch", type=int, default=16, help="pictures a step, over all processes and parts")
    recover.add_argument("--learning-rate", type=float, default=5e-5)
    recover.add_argument("--size", type=int, help="height and width in pixels; the pipeline's own if left out")
    recover.add_argument("--seed", type=int, default=0)
    recover.add_argument("--mixed-precision", default="no", choices=["no", "fp16", "bf16"])
    recover.add_argument("--accumulate", type=int, default=1, help="parts that a step is cut into, to save memory")
    recover.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    recover.add_argument("--resume", action="store_true", help="go on from the check point of a run that was stopped")

    train = commands.add_parser("train", help="train an embedded model, or the evaluator, from scratch")
    train.add_argument("model", choices=["openmoji-mmdit", "openmoji-unet", "openmoji-evaluator"])
    train.add_argument("--steps", type=int, default=5000)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--out", type=Path, required=True, help="folder for the check point and the pipeline")
    train.add_argument("--device", default="cpu", help="cpu or cuda; for the evaluator only cpu")

    options = parser.parse_args(arguments)
    run = {"prune": run_prune, "compare": run_compare, "recover": run_recover, "train": run_train}[options.command]
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_prune(options: argparse.Namespace) -> None:
    """Load, prune, save, say what happened."""
    amount = options.amount
    if options.component_amount:
        if amount is not None:
            raise ValueError("give --amount or --component-amount, not both")
        amount = dict(_rate(text) for text in options.component_amount)
    keywords = {name: getattr(options, name) for name in ("criterion", "scope", "only", "skip", "seed", "rank")}
    Request(options.granularity, amount, **keywords)  # refuse nonsense before a model is loaded
    looks_at_data = options.criterion not in WITHOUT_DATA
    if looks_at_data and options.prompts is None:
        raise ValueError(f"criterion {options.criterion!r} looks at data: give --prompts FILE, one prompt a line")
    prompts = _prompts(options.prompts) if looks_at_data else []

    from reference.checkpoint import check_target, save_pruned
    from reference.out_of_core import exceeds_memory, prune_out_of_core

    check_target(options.out)

    if options.out_of_core or (not looks_at_data and exceeds_memory(options.source)):
        if options.storage != "dense":
            raise ValueError("out of core writes dense files; leave --storage out")
        facts = prune_out_of_core(options.source, options.out, Request(options.granularity, amount, **keywords))
        print("out of core: removed {removed:,} of {units:,} units in {layers} layers; {seconds:.0f} s".format(**facts))
        print(f"saved to {options.out}; load it with reference.load_pruned({str(options.out)!r})")
        return

    from reference.calibration import Calibration
    from reference.engine import prune
    from reference.loaders import load

    pipeline = load(options.source, options.base_model)
    if looks_at_data:
        keywords["calibration"] = Calibration(pipeline, prompts, options.steps, options.seed)
    print(prune(pipeline, options.granularity, amount, **keywords))
    save_pruned(pipeline, options.out, options.storage)
    print(f"saved to {options.out}; load it with reference.load_pruned({str(options.out)!r})")


def run_compare(options: argparse.Namespace) -> None:
    """Draw with both from the same noise, print the fidelity, write the pictures."""
    _at_least_one(options, "batch", "steps")
    import numpy as np
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    from reference.bench import image_metrics
    from reference.checkpoint import load_pruned
    from reference.loaders import load_pipeline
    from reference.pictures import check_name, save

    check_name(options.out)
    wanted = image_metrics.parse(options.metrics) if options.metrics else []
    prompts = options.prompt or ["red heart", "pig face", "sleeping face", "green apple"]
    if options.prompts:
        prompts = _prompts(options.prompts)
    rows = []
    for pipeline in (load_pipeline(options.dense), load_pruned(options.pruned)):
        if not isinstance(pipeline, DiffusionPipeline):
            raise ValueError(f"{options.pruned} holds only a model, which draws nothing; prune and save its pipeline")
        pipeline.set_progress_bar_config(disable=True)
        drawn = []
        for first in range(0, len(prompts), options.batch):
            some = prompts[first : first + options.batch]
            generators = [torch.Generator().manual_seed(options.seed + first + i) for i in range(len(some))]
            pictures = pipeline(some, num_inference_steps=options.steps, generator=generators, output_type="np").images
            drawn.append(np.asarray(pictures))
        rows.append(np.concatenate(drawn))
    for prompt, dense, pruned in zip(prompts, *rows, strict=True):
        mse = max(float(np.square(dense - pruned).mean()), 1e-10)
        print(f"{prompt}: PSNR {-10 * np.log10(mse):.1f} dB")
    if wanted:
        pair = [torch.from_numpy((row * 255).round().astype(np.uint8)).permute(0, 3, 1, 2) for row in rows]
        print(*image_metrics.report(wanted, *pair, prompts), sep="\n")
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
    save(Image.fromarray((sheet * 255).round().astype(np.uint8)), options.out)
    print(f"dense above, pruned below: {options.out}")


def run_recover(options: argparse.Namespace) -> None:
    """Train on the pictures; check points beside --out, from which --resume goes on."""
    from reference.recover_folder import recover_folder
    from reference.recovery import Recipe

    _at_least_one(options, "accumulate", "checkpoint_every", "size")
    recipe = Recipe(options.steps, options.batch, options.learning_rate, options.loss, options.seed)
    out = options.out or options.folder.with_name(options.folder.name + "-recovered")
    record = recover_folder(
        options.folder, options.data, out, recipe, options.dense, options.size, options.mixed_precision,
        options.accumulate, options.checkpoint_every, options.resume,
    )  # fmt: skip
    print(f"{record['pictures']} pictures, {record['steps']} steps of {options.batch}: loss {record['loss_first']:.4f} "
          f"in the first tenth, {record['loss_last']:.4f} in the last; saved to {out}")  # fmt: skip


def run_train(options: argparse.Namespace) -> None:
    """Train; a generator resumes from the last check point in --out."""
    _at_least_one(options, "steps")
    if options.model == "openmoji-evaluator":
        if options.device != "cpu":
            raise ValueError(f"the evaluator is trained on the CPU; leave out --device {options.device}")
        from reference.embedded.evaluator import train_evaluator

        train_evaluator(options.out, options.steps, options.seed)
        print(f"saved to {options.out}")
        return
    from reference.embedded.train import train

    train(options.model, options.out, options.steps, options.seed, options.device)
    print(f"saved to {options.out / 'pipeline'}")


def _at_least_one(options: argparse.Namespace, *names: str) -> None:
    for name in names:
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is a whole number from 1 on, not {value}")


def _prompts(file: Path) -> list[str]:
    """One a line; empty lines do not count."""
    found = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{file} holds no prompts; write one a line")
    return found


def _rate(text: str) -> tuple[str, float]:
    name, _, rate = text.partition("=")
    try:
        return name, float(rate)
    except ValueError:
        raise ValueError(f"--component-amount takes NAME=RATE such as attention=0.3, not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
