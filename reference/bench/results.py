"""Result files: written once, checked against the schema, never changed; and the table read from them."""

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
from PIL import Image

from reference.bench.archive import as_text, read_archives
from reference.bench.device import ROOT, code, environment

SCHEMA = ROOT / "schemas" / "result.schema.json"
# A speed-up that keeps less than half of what the removed arithmetic promises.
PHANTOM = 0.5


def frame(
    protocol: dict, sha256: str, weights: Path, entry: str, keywords: dict, baseline: str | None, device: str = "cpu"
) -> dict:
    """A result with everything known before the run.

    `weights` is the folder of the dense model, or the file of an architecture whose weights are drawn.
    """
    now = datetime.now(UTC)
    settings = ("sampler", "noise_seeds", "dtype", "storage_dtype", "prompts")
    unique = hashlib.sha256(f"{now.isoformat()}{entry}{keywords}".encode()).hexdigest()[:6]
    return {
        "schema": "result/1",
        "run_id": f"{now:%Y%m%dT%H%M%SZ}-{unique}",
        "created": now.isoformat(timespec="milliseconds"),
        "status": "ok",
        "error": None,
        "protocol": {"id": protocol["id"], "sha256": sha256},
        "subject": {
            "model": weights.name.removesuffix(".json"),
            "weights_sha256": fingerprint(weights),
            "entry": entry,
            "is_baseline": baseline is None,
            "baseline_run": baseline,
        },
        "config": keywords | {name: protocol[name] for name in settings if name in protocol},
        "achieved": None,
        "quality": [],
        "speed": [],
        "environment": environment(device),
        "code": code() | {"command": command(), "wall_seconds": 0.0},
        "artifacts": [],
    }


@cache
def fingerprint(weights: Path) -> str:
    """SHA-256 of all weight files below a folder, or of one file."""
    files = [weights] if weights.is_file() else sorted(weights.rglob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def command() -> list[str]:
    """The command line that this process runs, without `--out FOLDER`: the file is where it is.

    Other absolute paths end up as their last part. A module that was started by itself, as `second_seed` is, is named.
    """
    told, kept = iter(sys.argv[1:]), []
    started = getattr(sys.modules["__main__"].__spec__, "name", "").removesuffix(".__main__")
    module = started if started.startswith("reference.bench") else "reference.bench"
    for argument in told:
        if argument == "--out":
            next(told, None)
        elif not argument.startswith("--out="):
            kept.append(Path(argument).name if Path(argument).is_absolute() else argument)
    return ["python", "-m", module, *kept]


def write(run: dict, folder: Path) -> Path:
    """Check a run and write it to `folder`/<run_id>.json. Raises jsonschema.ValidationError, FileExistsError."""
    jsonschema.validate(run, json.loads(SCHEMA.read_text()))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{run['run_id']}.json"
    if file.exists():
        raise FileExistsError(f"{file} exists; runs are never overwritten")
    scratch = file.with_suffix(".tmp")
    scratch.write_text(as_text(run))
    os.replace(scratch, file)
    return file


def write_pictures(pictures: np.ndarray, folder: Path) -> dict:
    """Pictures (p, 3, size, size) in [0, 1] side by side as PNG; the artifact record.

    The file is named by its content, so that runs that draw the same pictures share it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    strip = np.concatenate(list((pictures * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)), axis=1)
    png = io.BytesIO()
    Image.fromarray(strip).save(png, "PNG", optimize=True)
    data = png.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    file = folder / f"{digest[:16]}.png"
    scratch = folder / f"{digest[:16]}.{os.getpid()}.tmp"
    scratch.write_bytes(data)
    os.replace(scratch, file)
    return {"role": "pictures", "path": file.name, "sha256": digest, "bytes": len(data)}


def read(folder: Path) -> list[dict]:
    """All runs below `folder`, oldest first, each with the path of its file or archive as `path`.

    Raises ValueError if a run is there twice, or a file is damaged.
    """
    runs = [_load(file) | {"path": file} for file in folder.rglob("*.json")]
    files = {(run["path"].parent, run["run_id"]): run["path"] for run in runs if "run_id" in run}
    for run in read_archives(folder):
        if file := files.get((run["path"].parent, run["run_id"])):
            raise ValueError(f"{file} is in {run['path'].name} as well; remove the file")
        runs.append(run)
    return sorted(runs, key=lambda run: run["created"])


def _load(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}); remove it, and the run is made again") from None


def newest(runs: Iterable[dict]) -> list[dict]:
    """The runs of the latest session only: those that share the baseline of the newest run."""
    runs = list(runs)
    if not runs:
        return []
    baseline = runs[-1]["subject"]["baseline_run"] or runs[-1]["run_id"]
    return [r for r in runs if baseline in (r["run_id"], r["subject"]["baseline_run"])]


COLUMNS = (
    "entry", "asked", "units removed", "parameters removed", "file", "packed file", "memory", "MACs left", "nominal",
    "realised, 1 picture", "realised, 16 pictures", "prediction error", "PSNR, dB", "recovery",
)  # fmt: skip


def rows(runs: Sequence[dict]) -> list[list[str]]:
    """The table's rows: every ratio recomputed from the runs and their dense baseline."""
    dense = {r["run_id"]: r["achieved"] for r in runs if r["subject"]["is_baseline"] and r["status"] == "ok"}
    table = []
    for run in runs:
        subject, config = run["subject"], run["config"]
        if run["status"] != "ok":
            table.append([label(run), percent(config.get("amount")), run["error"], *["-"] * (len(COLUMNS) - 3)])
            continue
        now = run["achieved"]
        was = dense[subject["baseline_run"] or run["run_id"]]
        quality = {q["metric"]: q for q in run["quality"]}
        speed = {s["pictures"]: s for s in run["speed"]}
        nominal = was["macs"] / now["macs_nonzero"]
        table.append(
            [
                label(run),
                percent(config.get("amount")),
                percent(now["unit_rate"]),
                f"{100 * (1 - now['parameters'] / was['parameters']):.1f} %",
                f"{now['bytes'] / was['bytes']:.2f}x",
                of_dense(now.get("bytes_sparse"), was["bytes"]),
                of_dense(now.get("bytes_in_memory"), was.get("bytes_in_memory")),
                f"{now['macs'] / was['macs']:.2f}x",
                f"{nominal:.2f}x",
                *(_speed(speed[pictures], nominal, subject["is_baseline"]) for pictures in (1, 16)),
                value(quality.get("prediction_error"), 3),
                value(quality.get("psnr"), 1)
                if "psnr" in quality
                else value(quality["psnr_other_noise"], 1) + " other noise",
                f"{now['recovery_seconds']:.0f} s" if now["recovery_seconds"] else "none",
            ]
        )
    return table


def of_dense(now: int | None, was: int | None) -> str:
    """Bytes against those of the dense model; runs before 22 November 2026 did not measure all of them."""
    return "not measured" if now is None or was is None else f"{now / was:.2f}x"


def label(run: dict) -> str:
    """Entry and what it removes."""
    granularity = run["config"].get("granularity")
    entry = run["subject"]["entry"]
    return f"{entry} ({granularity})" if granularity not in (None, entry) else entry


def is_phantom(nominal: float, realised: float) -> bool:
    """Fewer operations on paper, yet less than half of the promised gain on the clock."""
    return realised - 1 < (nominal - 1) * PHANTOM and nominal > 1.005


def _speed(speed: dict, nominal: float, is_baseline: bool) -> str:
    if is_baseline:
        return f"1.00x ({speed['dense']['median']:.1f} ms)"
    low, high = speed["speedup_ci95"]
    mark = " phantom" if is_phantom(nominal, speed["speedup"]) else ""
    return f"{speed['speedup']:.2f}x ({low:.2f} to {high:.2f}){mark}"


def value(quality: dict | None, digits: int) -> str:
    """A figure with its interval, or a dash."""
    if quality is None:
        return "-"
    low, high = quality["ci95"]
    return f"{quality['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def percent(amount: float | None) -> str:
    """A rate, or a dash where there is none."""
    return "-" if amount is None else f"{100 * amount:.0f} %"
