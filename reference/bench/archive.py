"""`python -m reference.bench.archive FOLDER PROTOCOL`: put the runs of a protocol that is finished into one file.

Hundreds of small files weigh more than what stands in them. PROTOCOL.jsonl.gz holds the same runs, one a line, in the
order in which they were made; a file is removed only once the archive gives back its every byte. Nothing else about a
run changes: pages show it, and pictures stay where they are.
"""

import argparse
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".jsonl.gz"


def as_text(run: dict) -> str:
    """A run as its file holds it."""
    return json.dumps({name: value for name, value in run.items() if name != "path"}, indent=1) + "\n"


def read_archives(folder: Path) -> Iterator[dict]:
    """All runs of the archives below `folder`, each with its archive as `path`. ValueError if one is damaged."""
    for file in folder.rglob(f"*{SUFFIX}"):
        try:
            lines = gzip.decompress(file.read_bytes()).splitlines()
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{file} cannot be read ({error}); restore it, as from git") from None
        for line in lines:
            yield json.loads(line) | {"path": file}


def pack(folder: Path, protocol: str) -> Path:
    """Move the runs of `protocol`, its id, from their files in `folder` to an archive there.

    Raises ValueError, and removes nothing, if there are none, if there is an archive already, or if a file would not
    come back as it is.
    """
    runs = {file: json.loads(file.read_text()) for file in folder.glob("*.json")}
    of = lambda run: run.get("protocol", {}).get("id") if isinstance(run, dict) else None  # noqa: E731
    runs = {file: run for file, run in runs.items() if of(run) == protocol}
    archive = folder / f"{protocol}{SUFFIX}"
    if not runs:
        raise ValueError(f"{folder} holds no result file of the protocol {protocol!r}")
    if archive.exists():
        raise ValueError(f"{archive} exists; runs are never overwritten")
    ordered = sorted(runs.values(), key=lambda run: run["created"])
    lines = "".join(json.dumps(run, separators=(",", ":")) + "\n" for run in ordered)
    scratch = archive.with_suffix(".tmp")
    scratch.write_bytes(gzip.compress(lines.encode(), mtime=0))
    os.replace(scratch, archive)
    back = {run["run_id"]: as_text(run) for run in read_archives(folder) if run["path"] == archive}
    for file, run in runs.items():
        if back[run["run_id"]].encode() != file.read_bytes() or file.stem != run["run_id"]:
            archive.unlink()
            raise ValueError(f"{file} would not come back from an archive as it is; it was not written by the bench")
    for file in runs:
        file.unlink()
    return archive


def main(arguments: list[str] | None = None) -> int:
    """Pack; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m reference.bench.archive", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="results/SUITE/MACHINE")
    parser.add_argument("protocol", help="its id: one that was run to the end, or has another text by now")
    options = parser.parse_args(arguments)
    try:
        print(f"packed into {pack(options.folder, options.protocol)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
