"""What the runs of the claims suite say, read without torch: verdicts and the table.

    gain        ratio - 1, where the ratio is dense / pruned (of throughput pruned / dense); of memory saved, gigabytes
    reproduced  our gain is within 10 % of the printed one, or the printed ratio lies in our interval and 1 does not:
                an interval that knows no gain from a loss reproduces nothing
    partly      at least half of the printed gain
    not reproduced
    not comparable   the protocol names what differs

Ratios are judged on other hardware too, and labelled so; absolute times never are. Sizes need no hardware at all.
"""

from collections.abc import Mapping, Sequence

WITHIN, PARTLY = 0.1, 0.5
SIZES = ("parameters", "macs", "saved_gb")


def measured(run: Mapping) -> tuple[float, tuple[float, float] | None]:
    """Our ratio (or gigabytes) and its interval, recomputed from the run."""
    kind, now = run["config"]["claim"]["measure"], run["achieved"]
    if kind == "time":
        speed = run["speed"][0]
        return speed["speedup"], tuple(speed["speedup_ci95"])
    if kind == "saved_gb":
        size = "peak_bytes" if "peak_bytes" in now else "weight_bytes"
        return (now[f"dense_{size}"] - now[size]) / 1e9, None
    return now[f"dense_{kind}"] / now[kind], None


def verdict(
    kind: str,
    ratio: float,
    ours: float,
    interval: tuple[float, float] | None = None,
    at_least: bool = False,
    differs: str = "",
) -> str:
    """The word for our ratio beside the printed one; the rules are at the top of the file."""
    if differs:
        return f"not comparable: {differs}"
    offset = 0 if kind == "saved_gb" else 1
    share = (ours - offset) / (ratio - offset)
    inside = interval is not None and interval[0] <= ratio <= interval[1] and not interval[0] <= 1 <= interval[1]
    if inside or abs(share - 1) <= WITHIN or (at_least and share >= 1 - WITHIN):
        return "reproduced"
    return "partly" if share >= PARTLY else "not reproduced"


def judge(run: Mapping) -> str:
    """The verdict on the claim of a run, and where the hardware is another, that."""
    claim = run["config"]["claim"]
    told, kind = claim["printed"], claim["measure"]
    word = verdict(kind, told["ratio"], *measured(run), told["at_least"], claim.get("differs", ""))
    same = told["hardware"] and told["hardware"].split()[-1] in run["environment"].get("gpu", "")
    return word if kind in SIZES or same or claim.get("differs") else f"{word}, on other hardware"


COLUMNS = ("claim", "of", "printed", "ours", "verdict", "note")


def rows(runs: Sequence[Mapping]) -> list[list[str]]:
    """The table: the printed ratio beside ours."""
    table = []
    for run in runs:
        if run["status"] != "ok":
            table.append([run["config"]["asked"]["claim"], run["subject"]["model"], "-", "-", run["error"], ""])
            continue
        claim = run["config"]["claim"]
        unit = " GB" if claim["measure"] == "saved_gb" else "x"
        least = "at least " if claim["printed"]["at_least"] else ""
        told, ours = f"{least}{claim['printed']['ratio']:.2f}{unit}", f"{measured(run)[0]:.2f}{unit}"
        table.append([claim["id"], claim["measure"], told, ours, judge(run), claim.get("note", "")])
    return table
