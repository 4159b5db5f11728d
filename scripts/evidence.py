"""What the published runs in results/ say: the table and pictures of README and site, each number from a run file."""

import json
import re
from collections import Counter
from pathlib import Path

import yaml

from reference.bench import criteria_table, results
from reference.bench.device import ROOT
from scripts import calibration_data, charts, claims, figures_compared, figures_speed, quality_rates, subjects
from scripts.figures import shown as chart_or_command
from scripts.pictures import grid as pictures_of
from scripts.quality_runs import of_protocol
from scripts.runs import Row, protocol_of

PUBLISHED = ROOT / "reference" / "bench" / "protocols" / "published.yaml"
COVERAGE = ROOT / "reference" / "anatomy" / "coverage.json"
PEER_CHECKS = ROOT / "results" / "peer-checks" / "criteria.json"
PICTURES = Path("site") / "pictures"
CREDIT = (
    "Drawings: [OpenMoji](https://openmoji.org), CC BY-SA 4.0; the pictures are drawn by a model trained on them and "
    "carry the same licence."
)
SHOWN_PROMPTS = 10
LEGEND = (
    "*Nominal*: multiply-accumulates of the dense model / those that are left. *Realised*: on the clock; *phantom*: "
    "less than half of the nominal gain arrives. *PSNR*: to the dense model's picture from the same noise; *other "
    "noise*: between two dense pictures of one prompt, so that a lower PSNR is a larger change than another seed "
    "makes. Units go whole: of 5 heads a layer loses 2 for the 30 % asked. All are scored by magnitude. Only "
    "*iterative* is trained afterwards: beside the others it shows what training buys, not what rounds buy"
)
STORED_COLUMNS = ("file", "packed file", "memory")
LEFT_COLUMNS = ("entry", "asked", "units removed", "parameters removed", *STORED_COLUMNS, "MACs left", "nominal")
GAINS = ("nominal", "realised, 1 picture", "realised, 16 pictures")
COSTS = ("prediction error", "PSNR, dB", "recovery")
GAIN_COLUMNS = ("entry", "asked", *GAINS, *COSTS)
README_COLUMNS = (*LEFT_COLUMNS[:5], *GAINS[::2], *COSTS[1:])


def published(suite: str = "embedded") -> list[dict]:
    """Runs of the protocol that bears the suite's name: its newest session on each published device."""
    runs = []
    for device in yaml.safe_load(PUBLISHED.read_text()).get(suite, []):
        found = results.read(ROOT / "results" / suite / device)
        runs += results.newest(run for run in found if protocol_of(run) == suite)
    return runs


def other_machines(root: Path = ROOT) -> dict[str, list[dict]]:
    """Runs that others contributed: suite/device -> newest session, for devices that `published.yaml` leaves out."""
    named = yaml.safe_load(PUBLISHED.read_text())
    folders = [f for suite in named for f in sorted((root / "results" / suite).glob("*")) if f.is_dir()]
    return {
        f"{f.parent.name}/{f.name}": runs
        for f in folders
        if f.name not in named[f.parent.name] and (runs := results.newest(results.read(f)))
    }


def third_party(machines: dict[str, list[dict]]) -> str:
    """Section of the page with the runs of `other_machines`; empty if there are none."""
    if not machines:
        return ""
    parts = [
        "## Other machines",
        "**Third-party**: sent in by others, accepted by the schema, not repeated here. The tables above omit them.",
    ]
    for name, runs in machines.items():
        try:
            shown = f"{machine(runs[0])}\n\n{table(runs, README_COLUMNS)}"
        except KeyError as missing:  # a single run without its dense baseline, or an environment told in part
            shown = f"No table, for {missing} is not among these runs: " + ", ".join(r["run_id"] for r in runs) + "."
        # Others wrote these strings: they stay text.
        parts += [f"### {name} (third-party)", "".join(f"&#{ord(c)};" if c in "<>[]&" else c for c in shown)]
    return "\n\n".join(parts)


def readme_block(rows: list[Row]) -> str:
    """Markdown between the `results` markers of README.md."""
    runs = published()
    if not runs:
        return "No published run yet. Run `make bench`."
    parts = [
        subjects.sentence(rows),
        f"{machine(runs[0])} {len(runs)} runs. Brackets hold 95 % intervals.",
        table(runs, README_COLUMNS),
        f"{LEGEND}.",
        reading(runs),
        quality_rates.summary(of_protocol(rows, "quality-components")),
        "![Dense and pruned pictures from the same noise and prompt](site/pictures/embedded-grid.png)",
        "![Fidelity against realised speed-up](site/pictures/embedded-chart.svg)",
        f"Repeat it: `make bench`. Every run is a file under `results/`. {CREDIT}",
    ]
    return "\n\n".join(filter(None, parts))


def site_page(rows: list[Row]) -> str:
    """Markdown of site/generated/results.md."""
    runs = published()
    if not runs:
        return "# Results\n\nNo published run yet. Run `make bench`.\n"
    provenance = ["| Run | Entry | Result file | Commit | Seconds |", "|---|---|---|---|---|"]
    for run in runs:
        path = run["path"].relative_to(ROOT).as_posix()
        shown = f'<a href="runs/{run["run_id"]}.json">{path}</a>'
        commit = (run["code"]["commit"] or "none")[:10] + (" with uncommitted changes" if run["code"]["dirty"] else "")
        provenance.append(
            f"| {run['run_id']} | {results.label(run)} {results.percent(run['config'].get('amount'))} | {shown} | "
            f"{commit} | {run['code']['wall_seconds']:.0f} |"
        )
    first = runs[0]
    command = re.sub(r" --out \S+", "", " ".join(first["code"]["command"]))  # a folder of that machine
    versions = ", ".join(f"{n} {first['environment'][n]}" for n in ("python", "torch", "diffusers", "transformers"))
    return "\n\n".join(
        [
            "---\nhide: [toc]\n---",
            "# Results",
            "<!-- Generated from results/ by `python -m scripts.render`; edits here are overwritten. -->",
            f"{machine(first)} Protocol `{first['protocol']['id']}`; {versions}. Repeat it with `make bench` "
            f"(`{command}`). Read [method and limits](../method.md) first.",
            subjects.sentence(rows),
            "## Fidelity against speed",
            chart_or_command(figures_speed.pareto(rows), "Fidelity against speed", "make bench"),
            "## What is left\n\n" + table(runs, LEFT_COLUMNS),
            "File: the weights as any program reads them. Packed file: the same from `save_pruned(..., "
            'storage="sparse")`, which leaves zeros out and loads only by `load_pruned`. Memory: what the weights take '
            "once the packed file is loaded. Each against the dense model's.",
            "## What it buys and what it costs\n\n" + table(runs, GAIN_COLUMNS),
            f"{LEGEND}: [recovery](recovery.md). *Prediction error*: relative to the dense model's, along its own "
            "runs. Brackets hold 95 % intervals: of times over turns, of the rest over prompts.",
            "## What it says\n\n" + reading(runs),
            "## Pictures\n\nThe same noise and the same prompt in every column; one by one in the "
            "[image lab](lab.md).\n\n"
            '<div class="wide" tabindex="0" role="region" aria-label="Pictures"><img alt="Dense and pruned pictures '
            'from the same noise and prompt" src="../pictures/embedded-grid.png"></div>\n\n' + CREDIT,
            "## Runs\n\nWith all other suites, sortable and side by side: [all runs](runs.md).\n\n"
            + "\n".join(provenance),
            *filter(None, [third_party(other_machines())]),
            charts.loaders("results"),
            "",
        ]
    )


def criteria_page(shown: list[Row]) -> str:
    """Markdown of site/generated/criteria.md: every criterion at one rate a granularity, and whether orders hold."""
    runs = published("engine")
    if not runs:
        return "# Criteria compared\n\nNo published run yet. Run `python -m reference.bench --suite engine`.\n"
    first = runs[0]
    order = list(charts.MARKS)
    listed = sorted(criteria_table.rows(runs), key=lambda row: order.index(charts.pattern(row[0])))
    rows = [list(criteria_table.COLUMNS), ["---"] * len(criteria_table.COLUMNS), *listed]
    return "\n\n".join(
        [
            "---\nhide: [toc]\n---",
            "# Criteria compared",
            "<!-- Generated from results/ by `python -m scripts.render`; edits here are overwritten. -->",
            subjects.sentence(shown),
            f"{where(first)}, {first['config']['sampler']['steps']} steps, guidance "
            f"{first['config']['sampler']['guidance']:g}, protocol `{first['protocol']['id']}`. Repeat it with "
            "`python -m reference.bench --suite engine`. The error is that of the prediction, relative to the dense "
            f"model's, at the inputs of its own runs: {first['config']['held_out']} prompts that calibration did not "
            f"see, {len(first['config']['noise_seeds'])} seeds, nothing trained afterwards. 0 is the dense model; at "
            "1 the error is as large as what is to be predicted. Intervals: 95 % bootstraps over the pictures of "
            "all seeds. Each seed calibrates, draws and prunes anew, which the interval does not hold: look at *of "
            "each seed* beside it, for *random* and *learned* above all. Errors of other suites are not "
            "comparable with these: they have other steps and prompts, and compare the guided prediction.",
            chart_or_command(figures_compared.criteria(shown), "Criteria", "python -m reference.bench --suite engine"),
            "\n".join("| " + " | ".join(row) + " |" for row in rows),
            "## Do the orders that papers report hold here?",
            "Their models and rates are others. Where two errors are close, all seeds may agree on an order of little "
            "weight: see the intervals above.",
            "\n".join(["| Removed | Error | Expected order | Holds |", "|---|---|---|---|", *orders(runs)]),
            calibration_data.section(shown),
            peer_checks(),
            charts.loaders("criteria"),
            "",
        ]
    )


def peer_checks() -> str:
    """Section with what came out when the authors' programs ran beside ours on the same numbers."""
    rows = ["| Program and commit | Compared | Found |", "|---|---|---|"]
    for check in json.loads(PEER_CHECKS.read_text()):
        what = check["what"].replace("_", "_<wbr>")  # names of functions are wider than a phone
        found = [f"{name.replace('_', ' ')}: {_short(v)}" for name, v in check.items() if name not in KNOWN]
        rows.append(f"| {check['peer']} `{check['commit'][:7]}` | {what} | {'<br>'.join(found)} |")
    return (
        "## Against the authors' programs\n\nRun beside ours on the same weights and inputs; their code is not part of "
        "this repository. Numbers: `results/peer-checks/criteria.json`.\n\n" + "\n".join(rows)
    )


KNOWN = ("peer", "commit", "what")


def _short(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_short(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_short(v)}" for name, v in value.items())
    if not isinstance(value, float):
        return str(value)
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.4g}"


# Criteria that should do no worse than the next one, and by which error.
EXPECTED = (
    ("weight", "prediction_error", (("obs", "layer"), ("wanda", "row"), ("magnitude", "layer"))),
    ("2:4", "prediction_error", (("obs", "layer"), ("wanda", "layer"), ("magnitude", "layer"))),
    *((g, "weighted_prediction_error", (("obs-diff", "layer"), ("obs", "layer"))) for g in ("weight", "2:4", "neuron")),
    ("head", "weighted_prediction_error", (("obs-diff", "layer"), ("obs", "layer"))),
)


def orders(runs: list[dict]) -> list[str]:
    """For every expected order, as a row of a table, whether it holds, seed by seed."""
    found = {
        (run["config"]["granularity"], run["config"]["criterion"], run["config"]["scope"], quality["metric"]): quality
        for run in runs
        for quality in run["quality"]
    }
    rows = []
    for granularity, metric, chain in EXPECTED:
        errors = [found.get((granularity, criterion, scope, metric)) for criterion, scope in chain]
        if None in errors:
            continue
        seeds = list(zip(*(error["per_seed"] for error in errors), strict=True))
        holding = sum(list(seed) == sorted(seed) for seed in seeds)
        verdict = "yes" if holding == len(seeds) else "no" if holding == 0 else "depends on the seed"
        names = " <= ".join(f"{c} {error['value']:.4f}" for (c, _), error in zip(chain, errors, strict=True))
        weighted = "early steps count more" if metric.startswith("weighted") else "all steps alike"
        rows.append(f"| {granularity} | {weighted} | {names} | {verdict}: in {holding} of {len(seeds)} seeds |")
    return rows


def coverage_page() -> str:
    """Markdown of site/generated/coverage.md: what was shown to be cut exactly, for every denoiser class."""
    table = json.loads(COVERAGE.read_text())
    granularities = list(next(iter(table.values())))
    counts = {g: sum(row[g]["status"] == "exact" for row in table.values()) for g in granularities}
    lines = [
        "---\nhide: [toc]\n---\n",
        "# What can be cut\n",
        "<!-- Generated from reference/anatomy/coverage.json by `python -m scripts.render` -->\n",
        f"All {len(table)} denoiser classes of diffusers 0.42, each tried on tiny models, all parameters drawn anew. "
        "*Exact* means that cutting equals masking to 1e-5, at three rates and after three rounds in a row: "
        + ", ".join(f"{g} in {n} classes" for g, n in counts.items())
        + ". Single weights and N:M patterns need no rule and work on all of them. The engine obeys this table: what "
        "is refused here raises `NotPrunable` with the [reason](#why-not) of that number. The per cent are the "
        "parameters of the tiny model that go with half of the units. A dash: the class has no such units; "
        "coverage.json says what it has instead.\n",
        "| Class | " + " | ".join(granularities) + " |",
        "|---|" + "---|" * len(granularities),
    ]
    verdicts = [verdict for row in table.values() for verdict in row.values()]
    refused = Counter(v["reason"] for v in verdicts if v["status"] not in ("exact", "none"))
    number = {reason: n for n, (reason, _) in enumerate(refused.most_common(), 1)}
    for name, row in table.items():
        lines.append(f"| `{name}` | " + " | ".join(_covered(v, number) for v in row.values()) + " |")
    lines += ["\n## Why not\n", *(f"{n}. {reason[0].upper()}{reason[1:]}." for reason, n in number.items())]
    return "\n".join(lines) + "\n"


def _covered(verdict: dict, number: dict[str, int]) -> str:
    if verdict["status"] == "none":
        return "-"
    if verdict["status"] != "exact":
        return f"{verdict['status']} ({number[verdict['reason']]})"
    if "parameters" not in verdict:
        return "exact"
    before, after = verdict["parameters"]
    return f"exact, {round(100 * (after - before) / before)} %"


def machine(run: dict) -> str:
    """One sentence on what was measured where."""
    c = run["config"]
    return (
        f"{where(run)}, {c['sampler']['steps']} steps, guidance {c['sampler']['guidance']:g}, "
        f"{len(c['prompts'])} prompts x {len(c['noise_seeds'])} noise seeds, {run['created'][:10]}."
    )


def where(run: dict) -> str:
    """Model, machine and arithmetic of a run."""
    e = run["environment"]
    threads = run["speed"][0]["threads"] if run["speed"] else 0
    timed = f", timed on {threads} thread{'s' if threads > 1 else ''}" if threads else ""
    return (
        f"`{run['subject']['model']}` on {e['cpu']} ({e['cores']} cores, {e['memory_gib']:.0f} GiB{timed}), "
        f"{run['config']['dtype']}"
    )


def table(runs: list[dict], columns: tuple[str, ...]) -> str:
    """Some columns of the results table in Markdown, with aligned pipes."""
    wanted = [results.COLUMNS.index(column) for column in columns]
    rows = [[row[c] for c in wanted] for row in (results.COLUMNS, *results.rows(runs))]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("-" * w for w in widths) + " |", *lines[1:]])


def reading(runs: list[dict]) -> str:
    """What holds of the founding note's claims about 30 % and 50 % of the weights, computed from the runs."""
    dense = next(r for r in runs if r["subject"]["is_baseline"])
    said = {
        rate: (f"{100 * size:.0f} %", f"{100 * low:.0f}-{100 * high:.0f} %")
        for rate, (size, low, high) in claims.FOUNDING_CLAIMS.items()
    }
    quoted = "; ".join(
        f"{100 * rate:.0f} %{' pruning' * (not n)}: {size} smaller, {speed} faster"
        for n, (rate, (size, speed)) in enumerate(said.items())
    )
    columns = ["weights removed", "file", "zipped", "packed", *(_pictures(s) for s in dense["speed"])]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for run in runs:
        amount = run["config"].get("amount")
        if run["subject"]["entry"] != "unstructured" or amount not in said or run["status"] != "ok":
            continue
        now, was = run["achieved"], dense["achieved"]
        sizes = [now["bytes"] / was["bytes"], now["bytes_deflated"] / was["bytes_deflated"]]
        sizes += [now["bytes_sparse"] / was["bytes"]] if "bytes_sparse" in now else []
        smaller = [f"{100 * (1 - size):.1f} % smaller" for size in sizes] + ["-"] * (3 - len(sizes))
        times = [f"{s['speedup']:.2f}x: {_median(s['dense'])} -> {_median(s['pruned'])} ms" for s in run["speed"]]
        lines.append("| " + " | ".join([results.percent(amount), *smaller, *times]) + " |")
    said_and_found = [
        f'**What holds of the founding claim** ("{quoted}") for magnitude pruning of single weights:',
        "\n".join(lines),
        f"Zipped is beside the dense file zipped. Packed is beside the dense file as it is{_packed(dense)}. Times are "
        "medians of a denoising step, dense -> pruned (10th to 90th percentile).",
        "The reason: a mask stores its zeros and multiplies by them. A dense file has the same shape, a dense kernel "
        "does the same work; only a format that leaves zeros out, or a kernel that skips them, could profit. What "
        "leaves the shapes (neurons, heads) makes file and time shrink at once.",
    ]
    return "\n\n".join(said_and_found)


def _packed(dense: dict) -> str:
    """What packing alone does to the dense file."""
    now = dense["achieved"]
    if "bytes_sparse" not in now:
        return ""
    return (
        f", which packing alone, without pruning, makes {100 * (1 - now['bytes_sparse'] / now['bytes']):.1f} % smaller"
    )


def _pictures(speed: dict) -> str:
    return f"{speed['pictures']} picture{'s' if speed['pictures'] > 1 else ''} a batch"


def _median(times: dict) -> str:
    return f"{times['median']:.1f} ({times['p10']:.1f} to {times['p90']:.1f})"


def pictures(rows: list[Row]) -> dict[Path, bytes]:
    """Chart and grid of the published runs: path below the root -> content."""
    runs, chart = [r for r in published() if r["status"] == "ok"], figures_speed.pareto(rows)
    if not chart:
        return {}
    return {PICTURES / "embedded-chart.svg": charts.standalone(chart), PICTURES / "embedded-grid.png": grid(runs)}


def grid(runs: list[dict]) -> bytes:
    """The first prompts of every run, one row a run, as PNG."""
    labels = [f"{results.label(r)} {results.percent(r['config'].get('amount'))}".removesuffix(" -") for r in runs]
    strips = [(label, _strip(run)) for label, run in zip(labels, runs, strict=True)]
    return pictures_of(strips, runs[0]["config"]["prompts"][:SHOWN_PROMPTS])


def _strip(run: dict) -> Path:
    return run["path"].parent / run["artifacts"][0]["path"]
