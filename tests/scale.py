"""How the catalogue's programs grow: `python -m tests.scale` times them at 500, 1,000, 2,500 and 5,000 entries."""

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from scripts import add, catalog, export, render, validate

TODAY = date(2026, 11, 21)
SIZES = (500, 1000, 2500, 5000)


def catalogue(folder: Path, size: int) -> Path:
    """A valid catalogue of `size` entries with every field; three of four are papers, the rest tools and articles."""
    shutil.copytree(catalog.ROOT / "schemas", folder / "schemas")
    shutil.copy(catalog.ROOT / "mkdocs.yml", folder)
    papers = [
        f"""\
- id: paper-{i:05d}
  title: "Paper {i}: Pruning of Diffusion Models by Criterion Number {i}"
  authors: [Ada Example {i}, Ben Example]
  authors_complete: true
  year: 2023
  month: 5
  arxiv: "2305.{i:05d}"
  venue: {{name: NeurIPS, year: 2023, status: published}}
  url: https://arxiv.org/abs/2305.{i:05d}
  code: {{url: "https://github.com/example/paper-{i}", official: true}}
  family: pruning
  granularity: [channel, head]
  schedule: [one-shot]
  criterion: [taylor]
  recovery: [finetune]
  targets: [ddpm-cifar10, sdxl]
  claims:
    - {{id: fid, metric: fid, setting: "DDPM, CIFAR-10", unit: fid, dense: 4.19, pruned: 5.29, hardware: null,
       where: "Table 1", evidence: "https://arxiv.org/abs/2305.{i:05d}"}}
  evidence:
    - {{url: "https://arxiv.org/abs/2305.{i:05d}", what: "title, authors, abstract", seen: 2026-11-20}}
  confidence: high
  added: 2026-11-20
  checked: 2026-11-20
  summary: >-
    Removes channels in one shot by the Taylor score number {i} and fine-tunes what is left for a while.
"""
        for i in range(size * 3 // 4)
    ]
    rest = size - len(papers)
    tail = """\
  evidence:
    - {url: "https://example.org/page", what: "the page", seen: 2026-11-20}
  confidence: high
  added: 2026-11-20
  checked: 2026-11-20
  summary: "Removes channels of any traced network."
"""
    tools = [
        f"""\
- id: tool-{i:05d}
  name: Tool {i}
  kind: library
  url: https://github.com/example/tool-{i}
  license: MIT
  language: Python
  granularity: [channel]
  supports_diffusion: "yes"
  status: active
  works_with: [paper-{i:05d}]
{tail}"""
        for i in range(rest // 2)
    ]
    articles = [
        f"""\
- id: article-{i:05d}
  title: "Article {i} about Pruning"
  authors: []
  kind: tutorial
  url: https://example.org/article-{i}
  language: en
  topics: [structured]
  about: [paper-{i:05d}, tool-{i // 2:05d}]
{tail}"""
        for i in range(rest - rest // 2)
    ]
    for name, entries in (("papers", papers), ("tools", tools), ("articles", articles)):
        (folder / f"{name}.yaml").write_text("\n".join(entries), encoding="utf-8")
    blocks = ("papers", "tools", "articles", "results")
    readme = "".join(f"<!-- generated:{name} -->\n<!-- /generated:{name} -->\n" for name in blocks)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    return folder


def commands(root: Path) -> dict[str, Callable[[], int]]:
    """What is timed."""
    fields = root / "fields.yaml"
    fields.write_text('title: "One Entry More about Something Else"\nurl: https://example.org/more\n', encoding="utf-8")
    return {
        "validate": lambda: validate.main(root, TODAY),
        "render": lambda: render.main([], root),
        "export": lambda: export.main([str(root / "out")], root),
        "add": lambda: add.main(["article", "--from", str(fields)], root, TODAY),  # last: it leaves places to fill in
    }


def seconds(call: Callable[[], int]) -> float:
    """Processor time of a call that must succeed: what else runs on the machine does not count."""
    said = io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = call()
    assert code == 0, said.getvalue()[:1000]
    return time.process_time() - start


def main() -> None:
    """Print processor time by size, and by entry: linear growth keeps the latter level."""
    print(f"{'entries':>8} " + "".join(f"{name:>22}" for name in ("validate", "render", "export", "add")))
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            root = catalogue(Path(folder) / "catalogue", size)
            times = [seconds(call) for call in commands(root).values()]
        print(f"{size:>8} " + "".join(f"{t:>9.2f} s {t / size * 1000:>6.2f} ms/e" for t in times), flush=True)


if __name__ == "__main__":
    main()
