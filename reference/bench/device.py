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


def environment(device: str = "cpu") -> dict:
    """Processor, cores, memory, versions; for CUDA also what GPU, driver, libraries, and its clocks right now."""
    return {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers", "numpy")},
        **(gpu() if device == "cuda" else {}),
    }


def gpu() -> dict:
    """The GPU's own account of itself; `cusparselt` is None where torch was built without it."""
    import torch  # takes seconds, and the pages that show results are written without it

    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit")
    try:
        asked = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        answer = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()[0].split(",")
    except (OSError, subprocess.CalledProcessError, IndexError):
        answer = ["unknown"] * len(fields)

    facts = {field.replace(".", "_"): value.strip() for field, value in zip(fields, answer, strict=True)}
    properties = torch.cuda.get_device_properties(0)
    sparse = torch.backends.cusparselt
    return facts | {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cusparselt": sparse.version() if sparse.is_available() else None,
    }


def keep_fp32() -> None:
    """Let fp32 be fp32 on a GPU, whose matrix units would round it to 19 bits: in cuDNN's convolutions by default."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def cpu_name() -> str:
    """The processor's own name."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def device_folder(device: str = "cpu") -> str:
    """Name of this machine's folder under results/<suite>/: the GPU's where that is measured, else the processor's."""
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name(0)
    else:
        name = cpu_name()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"cuda-{slug}" if device == "cuda" else f"cpu-{slug}-{os.cpu_count()}-cores"


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
