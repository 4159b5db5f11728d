"""One palette: pages and charts show a granularity in the same colour, and the colours can be told apart."""

import re
from itertools import combinations

import pytest

from reference.request import GRANULARITIES
from scripts import catalog, palette

CSS = (catalog.ROOT / "site/stylesheets/extra.css").read_text(encoding="utf-8")
# Machado, Oliveira and Fernandes 2009, full severity, in linear RGB.
SIGHT = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.01182, 0.04294, 0.968881)),
}


def linear(colour: str) -> list[float]:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]


def lab(colour: str, sight: tuple) -> list[float]:
    rgb = linear(colour)
    r, g, b = (min(1, max(0, sum(m * c for m, c in zip(row, rgb, strict=True)))) for row in sight)
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def test_style_sheet_and_charts_have_the_same_colours():
    heads = (":root", r'\[data-md-color-scheme="slate"\]')
    root, slate = (re.search(rf"^{head} {{\n(.*?)^}}", CSS, re.M | re.S)[1] for head in heads)
    light = dict(re.findall(r"(--[\w-]+): (#\w{6});", root))
    dark = light | dict(re.findall(r"(--[\w-]+): (#\w{6});", slate))
    assert set(palette.LIGHT) == set(GRANULARITIES)
    for unit in (*GRANULARITIES, "expert"):
        assert light[palette.variable(unit)] == palette.colour(unit)
        assert dark[palette.variable(unit)] == palette.colour(unit, "dark")
    assert palette.colour("2:4") == palette.colour("N:M") != palette.colour("weight")


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colours", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_no_two_colours_look_alike(colours, sight):
    points = {unit: lab(colour, SIGHT[sight]) for unit, colour in colours.items()}
    for one, other in combinations(points, 2):
        distance = sum((a - b) ** 2 for a, b in zip(points[one], points[other], strict=True)) ** 0.5
        assert distance > 10, (one, other)
