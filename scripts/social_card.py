"""The picture that stands beside a shared link: the taxonomy's drawings in the colours of the palette, 1200 x 630 PNG.

Shapes are SVG, drawn by resvg; letters come from the font inside Pillow, so that no machine draws it without them.
"""

import io
import re

import resvg_py
from PIL import Image, ImageDraw, ImageFont

from scripts.catalog import ROOT
from scripts.palette import LIGHT, OTHER

SIZE = (1200, 630)
INK, PAPER = "#1b1b1b", "#ffffff"
COLUMNS, CELL = 4, (282, 176)  # four drawings beside each other, three below
TOP = 262


def drawings() -> list[tuple[str, str]]:
    """Granularity and content of each drawing of site/snippets/shapes.html, without its letters."""
    text = (ROOT / "site/snippets/shapes.html").read_text(encoding="utf-8")
    figures = re.findall(r'<figure id="drawing_([\w-]+)">.*?<svg[^>]*>(.*?)</svg>', text, re.S)
    names = {name.lower().replace(":", "-"): name for name in LIGHT}
    return [(names[key], re.sub(r"<text.*?</text>", "", body, flags=re.S)) for key, body in figures]


def places() -> list[tuple[int, int]]:
    """Upper left corners of the drawings: a full row and a shorter one in the middle."""
    shown = len(drawings())
    rows = [min(COLUMNS, shown - start) for start in range(0, shown, COLUMNS)]
    return [
        ((SIZE[0] - count * CELL[0]) // 2 + column * CELL[0], TOP + row * CELL[1])
        for row, count in enumerate(rows)
        for column in range(count)
    ]


def svg() -> str:
    """The card without letters."""
    style = f".line{{fill:none;stroke:{INK};stroke-width:1.5}}"
    style += f".gone{{fill:none;stroke:{OTHER['light']};stroke-width:.9}}"
    style += "".join(f".c{i} .kept{{fill:{LIGHT[name]}}}" for i, (name, _) in enumerate(drawings()))
    parts = [
        f'<g class="c{i}"><svg x="{x + 16}" y="{y}" width="{CELL[0] - 32}" height="{(CELL[0] - 32) * 110 // 220}" '
        f'viewBox="0 0 220 110">{body}</svg></g>'
        for i, ((_, body), (x, y)) in enumerate(zip(drawings(), places(), strict=True))
    ]
    width, height = SIZE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<style>{style}</style><rect width="{width}" height="{height}" fill="{PAPER}"/>'
        f'<rect width="{width}" height="12" fill="{LIGHT["weight"]}"/>{"".join(parts)}</svg>'
    )


def card(counts: str) -> bytes:
    """The card as PNG; `counts` says what the catalogue holds."""
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg())))).convert("RGB")
    pen = ImageDraw.Draw(image)
    pen.text((60, 56), "Awesome Diffusion Pruning", INK, ImageFont.load_default(66))
    pen.text(
        (62, 146), "Which method, at which rate, for which model - and why believe it?", INK, ImageFont.load_default(32)
    )
    pen.text((62, 200), counts, OTHER["light"], ImageFont.load_default(26))
    for (name, _), (x, y) in zip(drawings(), places(), strict=True):
        label = "2:4" if name == "N:M" else name
        pen.text((x + CELL[0] // 2, y + 140), label, INK, ImageFont.load_default(22), anchor="mm")
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
