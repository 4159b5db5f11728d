"""Cells of the quality suite: what a protocol file asks for, one run each, and what tells them apart.

An entry gives a cell for every rate, criterion and variant:

    entries:  - {entry: structured, granularity: neuron, criteria: [magnitude], rates: [0.5], models: [openmoji-unet]}
    variants: - {recovery: output, schedule: linear, rounds: 4}

`rates` and `models` of the file hold where an entry has none of its own; without `variants` there is one, empty. An
entry without granularity prunes nothing: its cells are the variants alone.
"""

from typing import NamedTuple

from reference.embedded import EMBEDDED

# The keywords that tell cells apart; they stand in a result's `config` under the same names.
ASKED = (
    "component", "granularity", "scope", "only", "criterion", "amount", "schedule", "rounds", "recovery", "partner",
    "part",
)  # fmt: skip


class Cell(NamedTuple):
    """One run: which model, which taxonomy entry, and what is done to it."""

    model: str
    entry: str
    keywords: dict


def list_cells(protocol: dict, models: list[str] | None, entries: list[str] | None) -> list[Cell]:
    """All cells, coarse rates first: every curve has its middle before any has its ends.

    Models whose weights do not ship are left out, unless `models` names them. Raises ValueError for unknown names.
    """
    known = [entry["entry"] for entry in protocol["entries"]]
    for name in entries or []:
        if name not in known:
            raise ValueError(f"no entry {name!r}; there are {', '.join(dict.fromkeys(known))}")
    for name in models or []:
        if name not in protocol["models"]:
            raise ValueError(f"no model {name!r} in the protocol; there are {', '.join(protocol['models'])}")
        if name not in EMBEDDED:
            raise ValueError(f"no weights of {name!r} here; there are {', '.join(EMBEDDED)}")
    ours = [name for name in protocol["models"] if name in (models or EMBEDDED)]
    rates = dict.fromkeys(rate for part in (protocol, *protocol["entries"]) for rate in _rates(part, {}))
    return [
        Cell(model, entry["entry"], keywords)
        for rate in rates
        for model in ours
        for entry in protocol["entries"]
        if rate in _rates(entry, protocol)
        if model in entry.get("models", ours) and (not entries or entry["entry"] in entries)
        for criterion in entry.get("criteria", [None])
        for variant in protocol.get("variants", [{}])
        if model in variant.get("models", ours)
        if (keywords := _keywords(entry, criterion, rate, variant))
    ]


def _rates(entry: dict, protocol: dict) -> list[float | None]:
    """An entry that prunes nothing has no rate."""
    unpruned = "entry" in entry and "granularity" not in entry
    return [None] if unpruned else entry.get("rates", protocol.get("rates", []))


def _keywords(entry: dict, criterion: str | None, rate: float | None, variant: dict) -> dict:
    found = {key: entry[key] for key in ASKED if key in entry}
    found |= {key: value for key, value in (("criterion", criterion), ("amount", rate)) if value is not None}
    return found | {key: value for key, value in variant.items() if key != "models"}


def key(run: Cell | dict) -> tuple[str, str]:
    """What makes two runs of one protocol the same: the model and what was asked of it."""
    model, asked = (run["subject"]["model"], run["config"]) if isinstance(run, dict) else (run.model, run.keywords)
    values = [_short(asked[name]) for name in ASKED if name in asked]
    return model, " ".join(value for value in values if value != "none")


def _short(value: object) -> str:
    """A recovery is told by its loss; a run without any says `none`."""
    return str(value.get("loss", value["kind"]) if isinstance(value, dict) else value)
