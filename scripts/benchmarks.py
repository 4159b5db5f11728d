"""The pages of measurements that are more than one suite's table, and the files that charts and tables load."""

from collections.abc import Sequence
from pathlib import Path

from scripts import (
    charts,
    evidence,
    figures_compared,
    figures_quality,
    figures_speed,
    lab,
    quality,
    run_table,
    subjects,
)
from scripts.figures import shown
from scripts.runs import Row
from scripts.text import NOTE

GPU = "# on a machine with an NVIDIA GPU\n    .venv/bin/python -m reference.bench --suite {} --resume --budget-s 540"


def pages(rows: Sequence[Row], repo: str) -> dict[str, str]:
    """Name of a page in site/generated/ -> Markdown."""
    strips = lab.page(lab.strips(rows), evidence.CREDIT)
    return {"speed": speed_page(rows), "runs": run_table.page(rows, repo), "lab": strips}


def drawn(rows: Sequence[Row]) -> dict[str, list[charts.Chart]]:
    """The charts of each page, those without runs left out."""
    found = {
        "results": [figures_speed.pareto(rows)],
        "speed": [figures_speed.nominal(rows), figures_speed.shapes(rows)],
        "criteria": [figures_compared.criteria(rows), figures_quality.calibration(rows)],
        **quality.drawn(rows),
    }
    return {page: [chart for chart in of_page if chart] for page, of_page in found.items()}


def files(rows: Sequence[Row], folder: Path) -> dict[str, str | bytes]:
    """What pages load, below `folder` (site/generated): specifications, Vega, the fields of all runs, result files."""
    vega = folder / "charts" / "vega.js"
    found = {f"charts/{page}.js": charts.script(of_page) for page, of_page in drawn(rows).items()}
    found["charts/vega.js"] = charts.bundle(vega.read_text(encoding="utf-8") if vega.exists() else "")
    found["data/run-fields.js"] = run_table.fields_script(rows)
    return found | run_table.files(rows) | lab.files(lab.strips(rows))


def speed_page(rows: Sequence[Row]) -> str:
    """Markdown of site/generated/speed.md: what the clock gives of what counting operations promises."""
    gpu = [row for row in rows if row.suite in ("latency", "kernels")]
    return _page(
        "speed",
        "Nominal against realised",
        "Counting multiply-accumulates promises a speed-up; the clock decides. A mask multiplies by its zeros, so a "
        "dense kernel gains nothing from it; a unit that leaves the shapes is work not done. "
        f"{figures_speed.delivered(rows)} How times are taken: [how it is measured](../benchmarks.md).",
        subjects.sentence(rows),
        shown(figures_speed.nominal(rows), "Nominal against realised", "make bench"),
        ""
        if gpu
        else charts.missing(
            "Full-size models on a GPU", GPU.format("latency"), "Only the embedded model on a CPU was timed so far."
        ),
        "## 2:4 products\n\nWhere a packed 2:4 product is faster than the dense one depends on its shape and on how "
        "many rows its input has. Calls repeat on the same tensors: what fits into the GPU's cache stays there, and "
        "the smallest products time their launch.",
        shown(figures_speed.shapes(rows), "2:4 products by shape", GPU.format("kernels"), "No GPU was at hand yet."),
    )


def _page(name: str, title: str, *parts: str) -> str:
    head = f"---\nhide: [toc]\n---\n\n<!-- {NOTE.format(source='results/')} -->\n\n# {title}"
    return "\n\n".join([head, *filter(None, parts), charts.loaders(name), ""])
