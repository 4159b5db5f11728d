"""Charts of the site: Vega-Lite specifications, drawn once as SVG for pages without a script, and given to the browser
as they are for those with one. Beside each stands a table of the same numbers.

Colours are the custom properties of site/stylesheets/extra.css, text is `currentColor`: one drawing for light and dark.
"""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import vl_convert

from scripts import palette
from scripts.text import NOTE, h

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
WIDTH, HEIGHT = 620, 340
# A mark of its own for every granularity: a colour never stands alone.
MARKS = {
    "weight": "circle",
    "N:M": "square",
    "neuron": "triangle-up",
    "channel": "diamond",
    "head": "cross",
    "block": "triangle-down",
    "rank": "triangle-right",
}
INK = {"labelColor": "currentColor", "titleColor": "currentColor"}
CONFIG = {
    "background": None,
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": INK
    | {f"{part}Color": "currentColor" for part in ("domain", "tick", "grid")}
    | {"gridOpacity": 0.14, "labelOverlap": "greedy"},
    "header": INK | {"labelFontSize": 12},
    "legend": INK | {"orient": "bottom", "symbolSize": 90},
    "title": {"color": "currentColor"},
    "point": {"opacity": 1},
    "mark": {"aria": False},
    "aria": False,  # the figure has a description, and its table every number
}


class Chart(NamedTuple):
    """A drawing and its twin. `choices`: parameter of the specification -> label and the values to choose from."""

    name: str
    title: str
    spec: dict
    heads: Sequence[str]
    table: Sequence[Sequence[str]]
    choices: dict[str, tuple[str, list[str]]]
    caption: str


def colour_and_shape(units: Sequence[str], field: str = "unit", title: str = "removed") -> dict:
    """Encodings of a granularity; both with one legend."""
    domain = sorted(set(units), key=lambda unit: [*map(pattern, MARKS), unit].index(pattern(unit)))
    colours = [f"var({palette.variable(unit)})" for unit in domain]
    shapes = [MARKS.get("N:M" if ":" in unit else unit, "stroke") for unit in domain]
    scales = {"color": colours, "shape": shapes}
    return {
        channel: {"field": field, "type": "nominal", "title": title, "scale": {"domain": domain, "range": values}}
        for channel, values in scales.items()
    }


def pattern(unit: str) -> str:
    """`N:M` for any such pattern."""
    return "N:M" if ":" in unit else unit


def quantity(field: str, title: str, **more: object) -> dict:
    """Encoding of a number."""
    return {"field": field, "type": "quantitative", "title": title, "scale": {"zero": False}} | more


def tooltips(**fields: str) -> list[dict]:
    """What a mark says when pointed at: field -> title."""
    return [{"field": field, "title": title} for field, title in fields.items()]


def spec(description: str, data: Sequence[dict], **parts: object) -> dict:
    """A specification with what all of them share."""
    size = {} if {"facet", "vconcat"} & parts.keys() else {"width": WIDTH, "height": HEIGHT}
    return {
        "$schema": SCHEMA,
        "description": description,
        "data": {"values": list(data)},
        **size,
        **parts,
        "config": CONFIG,
    }


def cross(data: Sequence[dict], x: dict, y: dict, tips: list[dict], text: str | None = None) -> list[dict]:
    """Layers of a point with its interval in both directions (fields x1, x2, y1, y2), and a word beside it.

    The parameter `unit` dims what is of another granularity.
    """
    units = colour_and_shape([row["unit"] for row in data])
    dim = {"opacity": dimmed("unit")}
    rule = {"type": "rule", "strokeOpacity": 0.55, "strokeWidth": 1.5}
    point = {"type": "point", "filled": True, "size": 110, "cursor": "pointer"}
    coloured = dim | {"color": units["color"]}
    layers = [
        {"mark": rule, "encoding": coloured | {"x": x, "y": y | {"field": "y1"}, "y2": {"field": "y2"}}},
        {"mark": rule, "encoding": coloured | {"x": x | {"field": "x1"}, "x2": {"field": "x2"}, "y": y}},
        {"mark": point, "encoding": dim | units | {"x": x, "y": y, "tooltip": tips}},
    ]
    if text:
        # On a phone there is no room for a word after the last points.
        aside = {"align": {"expr": "datum.last ? 'right' : 'left'"}, "dx": {"expr": "datum.last ? -9 : 9"}}
        word = {"type": "text", **aside, "dy": -8, "fontSize": 11, "color": "currentColor"}
        layers.append({"mark": word, "encoding": dim | {"x": x, "y": y, "text": {"field": text}}})
    return layers


def dimmed(field: str) -> dict:
    """Encoding of opacity: the parameter of the same name chooses one value of the field, or all."""
    return {"condition": {"test": f"{field} == 'all' || datum.{field} == {field}", "value": 1}, "value": 0.1}


def identity(low: float, high: float, x: str, y: str) -> dict:
    """A line where x equals y."""
    points = [{"x": low, "y": low}, {"x": high, "y": high}]
    mark = {"type": "line", "strokeDash": [5, 4], "color": "currentColor", "opacity": 0.6, "strokeWidth": 1.2}
    return {"data": {"values": points}, "mark": mark, "encoding": {"x": quantity("x", x), "y": quantity("y", y)}}


# Into a page


def figure(chart: Chart) -> str:
    """HTML of a chart: choices (hidden until the script runs), the SVG, a caption, the table folded below."""
    selects = ""
    for param, (label, values) in chart.choices.items():
        chosen = next(p["value"] for p in chart.spec["params"] if p["name"] == param)
        options = "".join(f'<option value="{h(v)}"{" selected" if v == chosen else ""}>{h(v)}</option>' for v in values)
        selects += f'<label>{h(label)} <select name="{param}">{options}</select></label>'
    form = f"<form hidden>{selects}</form>" if selects else ""
    caption = f"<b>{h(chart.title)}.</b> {h(chart.caption)}"
    twin = table(f"{chart.title}, as a table", chart.heads, chart.table)
    return (
        f'<figure class="chart" id="{chart.name}">{form}<div class="plot">{drawing(chart)}</div>'
        f"<figcaption>{caption}</figcaption>"
        f"<details><summary>The same numbers as a table</summary>{twin}</details></figure>"
    )


def drawing(chart: Chart) -> str:
    """The SVG, one picture to a screen reader."""
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg_of(json.dumps(chart.spec)))
    return svg.replace("<svg ", f'<svg role="img" aria-label="{h(chart.spec["description"])}" ', 1)


def standalone(chart: Chart) -> bytes:
    """The SVG for a page that has no style sheet of ours: README."""
    text = json.dumps(chart.spec | {"config": CONFIG | {"background": "white"}}).replace("currentColor", "#222222")
    for unit in (*palette.LIGHT, "other"):
        text = text.replace(f"var({palette.variable(unit)})", palette.colour(unit))
    return svg_of(text).encode()


# Both take seconds: once a process.
svg_of = cache(vl_convert.vegalite_to_svg)
javascript = cache(vl_convert.javascript_bundle)


def table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """HTML of a table that scrolls sideways where the page is too narrow, by keyboard as well."""
    head = "".join(f'<th scope="col">{h(cell)}</th>' for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{h(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{h(title)}">'
    return f'{region}<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def missing(title: str, command: str, why: str = "No run of this kind is published yet.") -> str:
    """In the place of a chart without runs: what would make them. Never empty axes."""
    return f'!!! info "{title}: not measured"\n    {why} This makes them:\n\n    ```sh\n    {command}\n    ```'


def script(charts: Sequence[Chart]) -> str:
    """The specifications of a page as a classic script of one assignment: pages from disk load no JSON."""
    data = json.dumps({chart.name: chart.spec for chart in charts}, ensure_ascii=False)
    return f"/* {NOTE.format(source='results/')} */\nwindow.charts = {data};\n"


def loaders(page: str) -> str:
    """The script elements of a page with charts; no other page loads them."""
    names = ("charts/vega.js", f"charts/{page}.js", "../javascripts/address.js", "../javascripts/charts.js")
    return "".join(f'<script defer src="{source}"></script>' for source in names)


def bundle(before: str) -> str:
    """Vega, Vega-Lite and their embedding as one classic script, out of the installed vl-convert-python.

    `before` is what the file holds now: the bundle takes seconds to make, so one of the same version is kept.
    """
    head = (
        f"/* Vega {vl_convert.get_vega_version()} and Vega-Lite, from vl-convert-python {vl_convert.__version__} */\n"
    )
    if before.startswith(head):
        return before
    # In a function: its thousands of names are its own.
    return f"{head}(() => {{\n{javascript()}\n}})();\n"
