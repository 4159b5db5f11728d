"""The page of all runs: one sortable table, how each was made, and the files themselves beside it."""

import json
import re
from collections.abc import Sequence

from reference.bench.archive import as_text
from reference.bench.results import percent
from scripts import runs
from scripts.figures import interval
from scripts.runs import Row, phantom
from scripts.sheet import Column, Line, sheet
from scripts.text import NOTE, h

COLUMNS = (
    Column("run", "Run"),
    Column("suite", "Suite"),
    Column("model", "Model"),
    Column("what", "Removed"),
    Column("criterion", "Criterion"),
    Column("recovery", "Recovery"),
    Column("parameters", "Parameters gone", True),
    Column("nominal", "Nominal", True),
    Column("realised", "Realised (95 %)", True),
    Column("error", "Error (95 %)", True),
    Column("psnr", "PSNR, dB (95 %)", True),
    Column("device", "Device"),
    Column("state", "State"),
    Column("made", "Made by"),
)
FACETS = {
    "suite": "Suite",
    "device": "Device",
    "model": "Model",
    "unit": "Removed",
    "criterion": "Criterion",
    "state": "State",
}
PLURAL = {"earlier run": "of an earlier session", "earlier protocol": "of an earlier protocol"}
PLURAL |= {"earlier weights": "of earlier weights"}
VERSIONS = ("python", "torch", "diffusers", "transformers", "numpy", "cuda", "driver_version")


def page(rows: Sequence[Row], repo: str) -> str:
    """Markdown of site/generated/runs.md."""
    made = sessions(rows)
    number = {row.id: n for n, group in enumerate(made, 1) for row in group}
    newest = sorted(rows, key=lambda row: (runs.STATES.index(row.state), row.suite))
    lines = [line(row, number[row.id]) for row in newest]
    named = {state: sum(row.state == state for row in rows) for state in runs.STATES}
    return "\n\n".join(
        [
            "---\nhide: [navigation, toc]\nsearch: {exclude: true}\n---",
            f"<!-- {NOTE.format(source='results/')} -->",
            "# All runs",
            f"{len(rows)} runs of every suite, failures included: "
            + ", ".join(f"{n} {PLURAL.get(state, state)}" for state, n in named.items() if n)
            + ". *Earlier* runs stay: under the same protocol they were measured again, under an earlier protocol they "
            "do not compare with the current ones. *Third-party* runs were sent in by others and not repeated here. A "
            "run's name opens its result file; its last column says how it was made. Read [method and "
            "limits](../method.md) first. Tick two runs to compare them.",
            '<div id="compare" class="compare"></div>',
            sheet("runs", COLUMNS, lines, FACETS),
            "## How they were made",
            *(session(n, group, repo) for n, group in enumerate(made, 1)),
            "".join(
                f'<script defer src="{source}"></script>'
                for source in ("../javascripts/address.js", "../javascripts/sheet.js", "../javascripts/compare.js")
            ),
            "",
        ]
    )


def line(row: Row, session_number: int) -> Line:
    """A run in the table."""
    psnr, error = row.quality("psnr") or row.quality("psnr_other_noise"), row.quality("prediction_error")
    left, speed, baseline = row.share("parameters"), row.speed, row.run["subject"]["is_baseline"]
    gone = None if left is None else 1 - left
    realised = "-"
    if speed and not baseline:
        mark = " phantom" if phantom(row, speed["speedup"]) else ""
        realised = interval([speed["speedup"], *speed["speedup_ci95"]], 2, "x") + mark
    what = "dense" if baseline else f"{row.unit or row.run['subject']['entry']}"
    what += f" {percent(row.amount)}" if row.amount is not None and ":" not in row.unit else ""
    failed = "" if row.run["status"] == "ok" else f"{row.run['status']}: {row.run['error']}"
    cells = [
        (f'<a href="runs/{h(row.id)}.json">{h(row.id)}</a>', None),
        (h(row.suite), None),
        (h(row.model), None),
        (h(what) + (f'<br><span class="failed">{h(failed)}</span>' if failed else ""), None),
        (h(", ".join(filter(None, [row.criterion, row.scope])) or "-"), None),
        (h(row.recovery), None),
        (percent(gone), gone),
        ("-" if row.nominal is None or baseline else f"{row.nominal:.2f}x", None if baseline else row.nominal),
        (realised, speed["speedup"] if speed and not baseline else None),
        (interval([error["value"], *error["ci95"]], 3) if error else "-", error["value"] if error else None),
        (
            (interval([psnr["value"], *psnr["ci95"]], 1) if psnr else "-")
            + (" other noise" if psnr and psnr["metric"].endswith("noise") else ""),
            psnr["value"] if psnr else None,
        ),
        (h(row.machine), None),
        (h(row.state), None),
        (f'<a href="#made-{session_number}">{h((row.run["code"]["commit"] or "no commit")[:7])}</a>', None),
    ]
    facets = {
        "suite": row.suite,
        "device": row.machine,
        "model": row.model,
        "unit": "dense" if baseline else row.unit or row.run["subject"]["entry"],
        "criterion": row.criterion,
        "state": row.state,
    }
    return Line(row.id, facets, cells)


def sessions(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs by what made them: suite, protocol, device, commit, command, versions."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        code, e = row.run["code"], row.run["environment"]
        key = [row.suite, row.device, row.run["protocol"], code["commit"], code["dirty"], code["command"]]
        groups.setdefault(json.dumps([*key, [e.get(name) for name in VERSIONS]]), []).append(row)
    return list(groups.values())


def session(number: int, group: Sequence[Row], repo: str) -> str:
    """One section of provenance: HTML, for others may have written these strings."""
    row, run = group[0], group[0].run
    code, e, protocol = run["code"], run["environment"], run["protocol"]
    commit = h(code["commit"] or "none")
    if repo and code["commit"]:
        commit = f'<a href="{h(repo)}/commit/{commit}">{commit}</a>'
    command = re.sub(r" --out \S+", "", " ".join(code["command"]))  # a folder of that machine
    facts = {
        "Command": f"<code>{h(command)}</code>",
        "Commit": commit + (" with uncommitted changes" if code["dirty"] else ""),
        "Protocol": f"{h(protocol['id'])}, sha256 <code>{h(protocol['sha256'])}</code>",
        "Device": h(", ".join(filter(None, [row.machine, f"{e['memory_gib']} GiB" if "memory_gib" in e else ""]))),
        "Versions": h(", ".join(f"{name} {e[name]}" for name in VERSIONS if e.get(name))),
        "Precision": h(run["config"]["dtype"]),
        "When": h(when(group[0].run["created"], group[-1].run["created"])),
        "Took": duration(sum(r.run["code"]["wall_seconds"] for r in group)),
        "Runs": f'<a href="runs.html#q={h(group[0].id)}">{len(group)}</a>'
        if len(group) == 1
        else f"{len(group)}, from {h(group[0].id)} to {h(group[-1].id)}",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    title = h(f"{row.suite}, {row.device}, {run['created'][:10]}, {row.state}")
    return f'<section class="made" id="made-{number}"><h3>{number}. {title}</h3><dl>{listed}</dl></section>'


def when(first: str, last: str) -> str:
    """`2026-11-22, 06:00 to 06:04 UTC`, with the second day where it is another."""
    until = last[11:16] if last[:10] == first[:10] else f"{last[:10]}, {last[11:16]}"
    return f"{first[:10]}, {first[11:16]} to {until} UTC"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, without those that are nought at the front."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (hours + minutes > 0) + [f"{rest} s"])


def fields_script(rows: Sequence[Row]) -> str:
    """Every field of every run, as a classic script that is loaded when two runs are compared."""
    data = {row.id: {"name": f"{row.suite}: {row.model}, {row.label}"} | {"fields": runs.fields(row)} for row in rows}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f"/* {NOTE.format(source='results/')} */\nwindow.runFields = {text};\n"


def files(rows: Sequence[Row]) -> dict[str, bytes]:
    """The result files themselves, also of runs in an archive, below site/generated/."""
    return {f"runs/{row.id}.json": as_text(row.run).encode() for row in rows}
