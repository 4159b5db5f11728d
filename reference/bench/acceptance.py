"""`python -m reference.bench.acceptance openmoji-unet`: does the evaluator find the prompt in what a model draws?

A model is accepted if, for at least 60 of 100 listed names, the name is among the 5 that fit its drawing best, out of
all names of the data set. The list is `protocols/acceptance.yaml`; names that the model never saw are judged as well,
but decide nothing. Writes `acceptance.json` and the grid of the 100 drawings, in the order of the list, row by row.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
import yaml
from PIL import Image
from torch import Tensor

from reference.bench import metrics
from reference.embedded import load_embedded, on_device
from reference.embedded.evaluator import SPLIT, load_evaluator, ranks
from reference.embedded.openmoji import catalogue, is_held_out
from reference.embedded.pipeline import EmbeddedPipeline

PROTOCOL = Path(__file__).parent / "protocols" / "acceptance.yaml"
BATCH = 25


def listed_names(count: int) -> list[str]:
    """The rule behind the list: of the names that model and evaluator were trained on, those with the lowest hashes."""
    rows = [row for row in catalogue() if not is_held_out(row[0]) and not is_held_out(row[0], SPLIT)]
    rows.sort(key=lambda row: hashlib.sha256(("acceptance" + row[0]).encode()).digest())
    return [name for _, name in rows[:count]]


def unseen_names() -> list[str]:
    """The names that no model under test was trained on, but the evaluator was."""
    return [name for stem, name in catalogue() if is_held_out(stem) and not is_held_out(stem, SPLIT)]


def draw(pipeline: EmbeddedPipeline, names: list[str], seeds: list[int], steps: int) -> Tensor:
    """Pictures (s, p, 3, 32, 32) in [0, 1], with the model's own guidance.

    The noise of a picture depends on its seed and place in the list alone.
    """
    pictures = []
    for seed in seeds:
        generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(names))]
        for i in range(0, len(names), BATCH):
            some = slice(i, i + BATCH)
            drawn = pipeline(names[some], steps, generator=generators[some], output_type="pt")
            pictures.append(drawn.images.cpu())
    return torch.cat(pictures).unflatten(0, (len(seeds), -1))


def judge(pipeline: EmbeddedPipeline, protocol: dict) -> tuple[dict, Tensor]:
    """The record of a model, and its pictures (p, 3, 32, 32) of the listed names from the first seed."""
    evaluator, gallery = load_evaluator(), [name for _, name in catalogue()]
    settings = protocol["noise_seeds"], protocol["sampler"]["steps"]
    listed = draw(pipeline, protocol["names"], *settings)
    unseen = draw(pipeline, unseen_names(), *settings)
    rank = ranks(evaluator, listed[0], protocol["names"], gallery)
    found = int((rank < 5).sum())
    record = {
        "protocol": protocol["id"],
        "accepted": found >= protocol["required"],
        "found_top5": found,
        "found_top1": int((rank < 1).sum()),
        "listed": len(rank),
        "gallery": len(gallery),
        "retrieval": [
            *metrics.retrieval(evaluator, listed, protocol["names"], gallery, "seen"),
            *metrics.retrieval(evaluator, unseen, unseen_names(), gallery, "unseen"),
        ],
        "ranks": dict(zip(protocol["names"], rank.tolist(), strict=True)),
    }
    return record, listed[0]


def grid(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures (p, 3, size, size) in [0, 1] row by row."""
    rows = pictures.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return Image.fromarray((rows * 255).round().byte().numpy())


def main(arguments: list[str] | None = None) -> int:
    """Judge a model; 0 if it is accepted, 1 if not, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m reference.bench.acceptance", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="openmoji-mmdit, openmoji-unet, or a folder of such a pipeline")
    parser.add_argument("--out", type=Path, required=True, help="folder for acceptance.json and acceptance.png")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    try:
        folder = Path(options.model)
        pipeline = EmbeddedPipeline.from_pretrained(folder) if folder.is_dir() else load_embedded(options.model)
        pipeline = on_device(pipeline, options.device)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    pipeline.set_progress_bar_config(disable=True)
    protocol = yaml.safe_load(PROTOCOL.read_text())
    record, pictures = judge(pipeline, protocol)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "acceptance.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    grid(pictures, 10).quantize(256, dither=Image.Dither.NONE).save(options.out / "acceptance.png", optimize=True)
    print(
        f"{record['found_top5']} of {record['listed']} names are among the evaluator's first 5 of {record['gallery']}"
    )
    for line in record["retrieval"]:
        low, high = line["ci95"]
        print(f"{line['metric']}: {line['value']:.3f} ({low:.3f}-{high:.3f}), n = {line['n']}")
    return 0 if record["accepted"] else 1


if __name__ == "__main__":
    sys.exit(main())
