"""How fast, and in how much memory, a checkpoint larger than it needs to be is pruned out of core.

    python -m reference.bench.out_of_core --folder NEW --double 4 --single 11 --rounds 5 --result FILE   about 6 GB
    python -m reference.bench.out_of_core --folder NEW --double 19 --single 38 --rounds 0 --result FILE  FLUX.1-dev

Makes a random FLUX-shaped checkpoint in bf16. Rounds: a plain copy, 30 % of each layer, 30 % of all, in turns, each
from a cold cache and to the disk (fsync); a ratio is taken within a round, since disks are shared. Without rounds: one
global run, every weight of which is then compared with the source. Each run is a process of its own; its peak memory is
given beside what importing took of it. Everything written to `--folder` is removed again.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from reference import threshold
from reference.bench.device import code, environment
from reference.manifest import PLAIN
from reference.on_disk import INDEX, open_checkpoint
from reference.request import Request
from reference.streaming import make_buffers, read_ahead, write_header
from reference.targets import weight_targets

SHARD_BYTES = 5 * 10**9
RATE = 0.3
CPU = ("user", "system", "children_user", "children_system")
ONE_RUN = """
import json, os, sys
from pathlib import Path
from reference.out_of_core import prune_out_of_core
from reference.request import Request
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
imported, before = peak(), os.times()
facts = prune_out_of_core(sys.argv[1], sys.argv[2], Request("weight", float(sys.argv[3]), scope=sys.argv[4]))
used = os.times()
facts |= {"cpu_seconds": used.user + used.system - before.user - before.system}
print(json.dumps(facts | {"peak_rss_bytes": peak(), "rss_bytes_of_imports": imported}))
"""


def main() -> None:
    """Make, measure, remove, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the checkpoints, removed afterwards")
    parser.add_argument("--double", type=int, default=19, help="double-stream blocks")
    parser.add_argument("--single", type=int, default=38, help="single-stream blocks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30, help="start no round that would end later")
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        dense = options.folder / "dense"
        size, largest = make_checkpoint(dense, options.double, options.single)
        result = {
            "what": f"random FLUX-shaped bf16 checkpoint, {options.double} double and {options.single} single blocks",
            "bytes": size,
            "largest_tensor_bytes": largest,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "environment": environment(),
            "code": code(),
        }
        result |= rounds(dense, options) if options.rounds else one_run(dense, options)
        options.result.parent.mkdir(parents=True, exist_ok=True)
        options.result.write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
    finally:
        shutil.rmtree(options.folder)


def make_checkpoint(folder: Path, double: int, single: int) -> tuple[int, int]:
    """Write config, shards and index; all bytes, and those of the largest tensor."""
    folder.mkdir()
    sizes = {"num_layers": double, "num_single_layers": single, "guidance_embeds": True}
    with torch.device("meta"):
        model = FluxTransformer2DModel(**sizes)  # the other defaults are FLUX.1's
    model.save_config(folder)
    shards: list[list] = [[]]
    for name, tensor in model.state_dict().items():
        if sum(2 * int(np.prod(shape)) for _, _, shape in shards[-1]) + 2 * tensor.numel() > SHARD_BYTES:
            shards.append([])
        shards[-1].append((name, "BF16", tuple(tensor.shape)))
    g = torch.Generator().manual_seed(0)
    files = {}
    for i, tensors in enumerate(shards, start=1):
        file = f"{PLAIN}-{i:05d}-of-{len(shards):05d}.safetensors"
        files |= {name: file for name, _, _ in tensors}
        with open(folder / file, "wb") as stream:
            stream.write(write_header({"format": "pt"}, tensors))
            left = sum(int(np.prod(shape)) for _, _, shape in tensors)
            while left:
                count = min(left, 1 << 22)
                stream.write((torch.randn(count, generator=g) * 0.02).bfloat16().view(torch.uint8).numpy())
                left -= count
            stream.flush()
            os.fsync(stream.fileno())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    sizes = [2 * tensor.numel() for tensor in model.state_dict().values()]
    return sum(sizes), max(sizes)


def rounds(dense: Path, options: argparse.Namespace) -> dict:
    """Copy, per layer, global, in turns, until the rounds or the minutes are over."""
    found: dict[str, list[dict]] = {"copy": [], "layer": [], "global": []}
    start = time.perf_counter()
    for turn in range(options.rounds):
        if turn and (time.perf_counter() - start) * (turn + 1) / turn > 60 * options.minutes:
            break
        for what, runs in found.items():
            out = options.folder / "out"
            cool(dense)
            runs.append(copy(dense, out) if what == "copy" else prune(dense, out, what))
            shutil.rmtree(out)
            print(turn, what, runs[-1], file=sys.stderr, flush=True)
    result: dict = {"rate": RATE, "rounds": len(found["copy"]), "load_average": os.getloadavg()}
    for unit in ("seconds", "cpu_seconds"):
        each = {what: [run[unit] for run in runs] for what, runs in found.items()}
        ratios = {w: [a / b for a, b in zip(each[w], each["copy"], strict=True)] for w in ("layer", "global")}
        result[unit] = each
        result[f"{unit}_times_copy_median"] = {what: statistics.median(values) for what, values in ratios.items()}
    for fact in ("peak_rss_bytes", "rss_bytes_of_imports"):
        result[fact] = {what: max(run[fact] for run in found[what]) for what in ("layer", "global")}
    return result


def one_run(dense: Path, options: argparse.Namespace) -> dict:
    """30 % of all target weights, then every number compared with the source."""
    out = options.folder / "out"
    cool(dense)
    before = {"rate": RATE, "scope": "global", "load_average": os.getloadavg()}
    return before | prune(dense, out, "global") | compare(dense, out)


def copy(source: Path, out: Path) -> dict:
    """A plain copy that is on the disk."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(["cp", "-r", "--reflink=never", source, out], check=True)
    for file in out.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    used = os.times()
    cpu = sum(getattr(used, kind) - getattr(before, kind) for kind in CPU)
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu}


def prune(source: Path, out: Path, scope: str) -> dict:
    """One run in a process of its own; its seconds leave out importing."""
    command = [sys.executable, "-c", ONE_RUN, str(source), str(out), str(RATE), scope]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cool(folder: Path) -> None:
    """Drop the files from the system's cache."""
    os.sync()
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(dense: Path, pruned: Path) -> dict:
    """Every tensor of both: zeros among the targets, and that nothing else has changed."""
    before, after = open_checkpoint(dense), open_checkpoint(pruned)
    layers, _ = weight_targets(before.root, Request("weight", RATE))
    targets = {f"{layer.name}.weight" for layer in layers}
    largest = max(entry.end - entry.start for shard in before.shards for entry in shard.entries)
    facts = {"target_zeros": 0, "target_zeros_before": 0, "negative_zeros_written": 0, "other_changes": 0}
    highest_removed, lowest_kept = 0, 1 << 15
    for a, b in zip(before.shards, after.shards, strict=True):
        pools = make_buffers(largest), make_buffers(largest)
        streams = (read_ahead(shard.file, shard.entries, pool) for shard, pool in zip((a, b), pools, strict=True))
        for (entry, old, buffer), (_, new, other) in zip(*streams, strict=True):
            if entry.name not in targets:
                facts["other_changes"] += int(not np.array_equal(old, new))
            else:
                for was, now in zip(*(threshold.chunks(part.view("<u2")) for part in (old, new)), strict=True):
                    gone = (now == 0) & (was != 0)
                    facts["target_zeros"] += int(np.count_nonzero(now == 0))
                    facts["target_zeros_before"] += int(np.count_nonzero(was == 0))
                    facts["negative_zeros_written"] += int(np.count_nonzero((now == 0x8000) & (was != 0x8000)))
                    facts["other_changes"] += int(np.count_nonzero((now != was) & ~gone))
                    keys = was & 0x7FFF
                    highest_removed = max(highest_removed, int(keys[gone].max(initial=0)))
                    lowest_kept = min(lowest_kept, int(keys[now != 0].min(initial=1 << 15)))
            pools[0].put(buffer)
            pools[1].put(other)
    return facts | {"highest_removed_at_most_lowest_kept": highest_removed <= lowest_kept}


if __name__ == "__main__":
    main()
