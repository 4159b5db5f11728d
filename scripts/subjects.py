"""What was measured, in a sentence for every page that a reader may generalise from: models, their size, machines."""

from collections.abc import Iterable

from scripts.runs import Row

TRAINED = ("embedded", "quality", "engine")  # suites of trained models; the others time drawn weights
SMALL = 1e8  # parameters


def sentence(rows: Iterable[Row]) -> str:
    """The trained models that the current runs are of, with their size, and where they ran; empty without runs."""
    own = [row for row in rows if row.suite in TRAINED and row.state == "current" and row.run["status"] == "ok"]
    sizes = {row.model: row.run["achieved"]["parameters"] for row in own if row.run["subject"]["is_baseline"]}
    if not sizes:
        return ""
    models = " and ".join(f"`{model}` ({count / 1e6:.1f} million parameters)" for model, count in sorted(sizes.items()))
    machines = ", ".join(sorted({row.machine for row in own}))
    gpu = "" if any("gpu" in row.run["environment"] for row in own) else ", none on a GPU"
    found = f"Trained models measured so far: {models}; all runs on {machines}{gpu}."
    if max(sizes.values()) < SMALL:
        found += " They are small and draw small pictures: what they stand says little about the rates of large models."
    return found
