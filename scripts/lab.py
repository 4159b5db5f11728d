"""The image lab: what each model drew from the same noise and prompt, dense and pruned, the worst case first.

A run's pictures lie side by side in one file beside its result, in the order of its prompts, from its first seed.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from scripts import charts
from scripts.runs import Row
from scripts.text import NOTE, h

PROTOCOLS = ("embedded", "quality")
LARGEST = 99.0  # dB, for equal pictures


class Strip(NamedTuple):
    """The pictures of a run beside those of its dense model."""

    row: Row
    file: Path
    dense: Path
    size: int  # pixels along a side
    prompts: list[str]
    psnr: list[float]  # dB, a picture


def strips(rows: Sequence[Row]) -> list[Strip]:
    """Current runs with pictures whose dense model has some too, the one with the worst picture first."""
    found = []
    for row in rows:
        file, dense = picture_file(row.run), picture_file(row.dense or {})
        if row.protocol in PROTOCOLS and row.state == "current" and file and dense and file != dense:
            a, b = (tiles(path) for path in (dense, file))
            n = min(len(a), len(b), len(row.run["config"]["prompts"]))
            far = [psnr(x, y) for x, y in zip(a[:n], b[:n], strict=True)]
            found.append(Strip(row, file, dense, a.shape[1], row.run["config"]["prompts"][:n], far))
    return sorted(found, key=lambda strip: min(strip.psnr))


def picture_file(run: dict) -> Path | None:
    """The file of a run's pictures, if it is there."""
    names = [artifact["path"] for artifact in run.get("artifacts", []) if artifact["role"] == "pictures"]
    file = run["path"].parent / Path(names[0]).name if names else None
    return file if file and file.exists() else None


def tiles(file: Path) -> np.ndarray:
    """The pictures of a file: (p, size, size, 3), 0 to 255."""
    strip = np.asarray(Image.open(file).convert("RGB"))
    size = strip.shape[0]
    return strip.reshape(size, -1, size, 3).transpose(1, 0, 2, 3)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """-10 log10 of the mean squared difference of two pictures, as a share of the largest value."""
    wrong = float(np.mean((a.astype(float) - b.astype(float)) ** 2)) / 255**2
    return min(LARGEST, -10 * np.log10(wrong)) if wrong else LARGEST


def title(strip: Strip) -> str:
    """A run as the lab lists it."""
    suite = "" if strip.row.protocol == PROTOCOLS[0] else f"{strip.row.protocol}, "
    return f"{suite}{strip.row.model}: {strip.row.label}"


def page(found: Sequence[Strip], credit: str) -> str:
    """Markdown of site/generated/lab.md: the lab for pages with a script, a grid of all pictures for all."""
    head = f"---\nhide: [toc]\n---\n\n<!-- {NOTE.format(source='results/')} -->\n\n# Image lab"
    if not found:
        return "\n\n".join([head, charts.missing("Pictures", "make bench"), credit, ""])
    text = (
        "Dense and pruned model, the same noise, the same prompt, no picture chosen by hand. The picture that moved "
        "most comes first: PSNR to the dense one, computed from the saved files. Pictures are shown pixel by pixel."
    )
    form = (
        '<div class="lab" hidden><form>'
        '<label>Pruned model<select name="run"></select></label>'
        '<label>Picture, worst first<select name="picture"></select></label>'
        "<fieldset><legend>View</legend>"
        + "".join(
            f'<label><input type="radio" name="view" value="{key}"{" checked" if key == "side" else ""}>{label}</label>'
            for key, label in (
                ("side", "side by side"),
                ("slider", "slider"),
                ("flicker", "flicker"),
                ("difference", "difference"),
            )
        )
        + "</fieldset></form>"
        '<p class="keys">Keys: <kbd>&larr;</kbd> <kbd>&rarr;</kbd> next picture, <kbd>&uarr;</kbd> <kbd>&darr;</kbd> '
        "next model, <kbd>1</kbd> to <kbd>4</kbd> the view, <kbd>space</kbd> dense or pruned when flickering. They "
        "work while the pictures have the focus.</p>"
        '<div class="stage" tabindex="0" role="group" aria-label="Dense and pruned picture">'
        '<div class="tile dense" role="img"></div><div class="tile pruned" role="img"></div></div>'
        '<p class="tool"></p><p class="told" role="status"></p></div>'
    )
    grid = []
    for strip in found:
        worst = min(range(len(strip.psnr)), key=strip.psnr.__getitem__)
        about = f"worst: {strip.prompts[worst]}, {strip.psnr[worst]:.1f} dB"
        grid.append(
            f'<figure><figcaption><b>{h(title(strip))}</b>, {h(about)}</figcaption><div class="scroll" tabindex="0" '
            f'role="region" aria-label="{h(title(strip))}">'
            + "".join(
                f'<img src="runs/{file.name}" width="{len(strip.prompts) * 40}" height="40" loading="lazy" '
                f'alt="{who} model: {h(", ".join(strip.prompts))}">'
                for who, file in (("Dense", strip.dense), ("Pruned", strip.file))
            )
            + "</div></figure>"
        )
    return "\n\n".join(
        [
            head,
            text,
            form,
            "## All pictures",
            "The dense model above, the pruned one below, prompts in the order of the protocol.",
            '<div class="strips">' + "\n".join(grid) + "</div>",
            "## Credit",
            credit,
            "".join(
                f'<script defer src="{source}"></script>'
                for source in ("data/lab.js", "../javascripts/address.js", "../javascripts/lab.js")
            ),
            "",
        ]
    )


def script(found: Sequence[Strip]) -> str:
    """What the lab shows, as a classic script: of each run the files, and its pictures with the worst first."""
    data = [
        {
            "id": strip.row.id,
            "name": title(strip),
            "dense": f"runs/{strip.dense.name}",
            "pruned": f"runs/{strip.file.name}",
            "count": len(tiles(strip.file)),
            "pictures": [
                {"at": i, "prompt": strip.prompts[i], "psnr": round(strip.psnr[i], 2)}
                for i in sorted(range(len(strip.psnr)), key=strip.psnr.__getitem__)
            ],
        }
        for strip in found
    ]
    text = json.dumps(data, ensure_ascii=False, indent=1).replace("</", "<\\/")
    return f"/* {NOTE.format(source='results/')} */\nwindow.lab = {text};\n"


def files(found: Sequence[Strip]) -> dict[str, str | bytes]:
    """The pictures, and the script, below site/generated/."""
    pictures = {f"runs/{file.name}": file.read_bytes() for strip in found for file in (strip.file, strip.dense)}
    return pictures | {"data/lab.js": script(found)}
