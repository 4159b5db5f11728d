"""A table that site/javascripts/sheet.js sorts and filters; without a script a plain table, in the order given."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scripts.text import h


class Column(NamedTuple):
    """Key in the address, head, and whether it is sorted by numbers."""

    key: str
    head: str
    number: bool = False


class Line(NamedTuple):
    """A row: id, values of the facets, and a cell a column: HTML, and the number to sort by (None: last)."""

    id: str
    facets: Mapping[str, str]
    cells: Sequence[tuple[str, float | None]]


def sheet(
    name: str, columns: Sequence[Column], lines: Sequence[Line], facets: Mapping[str, str], more: str = ""
) -> str:
    """HTML of the table, with its form (hidden until the script runs): search, a select a facet, and `more`."""
    selects = ""
    for facet, label in facets.items():
        found = Counter(line.facets[facet] for line in lines)
        options = "".join(f'<option value="{h(v)}">{h(v) or "none"} ({n})</option>' for v, n in found.items())
        label = f'{h(label)}<select name="{facet}"><option value="">all</option>{options}</select>'
        selects += f"<label>{label}</label>"
    head = "".join(
        f'<th scope="col" data-key="{c.key}"{" data-number" if c.number else ""}>{h(c.head)}</th>' for c in columns
    )
    body = []
    for line in lines:
        data = "".join(f' data-{facet}="{h(value)}"' for facet, value in line.facets.items())
        cells = "".join(
            f"<td>{html}</td>" if value is None else f'<td data-value="{value:.6g}">{html}</td>'
            for html, value in line.cells
        )
        body.append(f'<tr id="{h(line.id)}"{data}>{cells}</tr>')
    return (
        f'<div class="sheet" id="{name}"><form role="search" hidden><p class="ask">'
        f'<label>Search<input type="search" name="q" autocomplete="off" spellcheck="false"></label>{selects}</p>'
        f'<p class="act"><output aria-live="polite"></output><button type="reset">Clear all</button>{more}</p></form>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{h(name)}">'
        f'<table class="data"><thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(body)
        + "\n</tbody></table></div></div>"
    )
