"""What machine, software and code made a number."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Changing these does not change what is measured.
NOT_CODE = ("results/", "README.md", "site/")


def environment() -> dict:
    """Processor, cores, memory, versions."""
    return {
        "device": "cpu",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers", "numpy")},
    }


def cpu_name() -> str:
    """The processor's own name."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def device_folder() -> str:
    """Name of this machine's folder under results/<suite>/."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")
    return f"cpu-{slug}-{os.cpu_count()}-cores"


def code() -> dict:
    """Commit of the code and whether it has uncommitted changes; from REFERENCE_COMMIT where there is no git."""
    if commit := os.environ.get("REFERENCE_COMMIT"):
        return {"commit": commit, "dirty": False}
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changed = [line[3:] for line in _git("status", "--porcelain").splitlines()]
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": True}
    return {"commit": commit, "dirty": any(not path.startswith(NOT_CODE) for path in changed)}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout
