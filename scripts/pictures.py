"""Strips of pictures, one a run, as one grid with names."""

import io
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SCALE, GAP, MARGIN, TOP, LINE, WIDTH = 2, 6, 10, 24, 12, 10


def grid(strips: list[tuple[str, Path]], prompts: list[str]) -> bytes:
    """(label, file with square pictures side by side) a row, as PNG; the first pictures are those of `prompts`.

    As many columns as the shortest file has pictures.
    """
    sizes = [Image.open(file).size for _, file in strips]
    side = sizes[0][1]
    prompts = prompts[: min(width for width, _ in sizes) // side]
    size = side * SCALE
    names = [textwrap.fill(prompt, WIDTH, break_long_words=False) for prompt in prompts]
    font = ImageFont.load_default(11)
    left = max(150, MARGIN * 2 + round(max(font.getlength(label) for label, _ in strips)))
    top = TOP + LINE * max(name.count("\n") for name in names)
    canvas = Image.new("RGB", (left + len(prompts) * (size + GAP), top + len(strips) * (size + GAP)), "white")
    pen = ImageDraw.Draw(canvas)
    for column, name in enumerate(names):
        pen.text((left + column * (size + GAP) + size / 2, top / 2), name, "black", font, anchor="mm", align="center")
    for row, (label, file) in enumerate(strips):
        y = top + row * (size + GAP)
        pen.text((left - MARGIN, y + size / 2), label, "black", font, anchor="rm")
        strip = Image.open(file).convert("RGB")
        for column in range(len(prompts)):
            tile = strip.crop((column * side, 0, (column + 1) * side, side))
            canvas.paste(tile.resize((size, size), Image.Resampling.NEAREST), (left + column * (size + GAP), y))
    buffer = io.BytesIO()
    canvas.quantize(255, kmeans=0).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
