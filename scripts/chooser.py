"""What the chooser on the home page chooses from: the published runs, as a classic script of one assignment."""

import json

from reference.bench import results
from scripts.text import NOTE


def script(runs: list[dict], vocab: dict, repo: str) -> str:
    """site/generated/data/runs.js: `window.measured = {models, runs}`; every ratio recomputed from the runs."""
    labels = {key: value["label"] for key, value in vocab["models"].items() if key != "other"}
    rows = [row(run, runs, repo) for run in runs if run["status"] == "ok" and not run["subject"]["is_baseline"]]
    data = json.dumps({"models": labels, "runs": rows}, indent=1, ensure_ascii=False)
    return f"/* {NOTE.format(source='results/')} */\nwindow.measured = {data};\n"


def row(run: dict, runs: list[dict], repo: str) -> dict:
    """One run: what was done, what it bought with intervals, what it cost, where it stands."""
    dense = next(r for r in runs if r["run_id"] == run["subject"]["baseline_run"])
    config, now, was = run["config"], run["achieved"], dense["achieved"]
    speed = max(run["speed"], key=lambda s: s["pictures"], default=None)
    quality = {q["metric"]: q for q in run["quality"]}
    other = {q["metric"]: q for q in dense["quality"]}.get("psnr_other_noise")
    nominal = was["macs"] / now["macs_nonzero"]
    recovery = config.get("recovery", {})
    return {
        "id": run["run_id"],
        "date": run["created"][:10],
        "path": run["path"].relative_to(run["path"].parents[3]).as_posix(),
        "repo": repo,
        "model": run["subject"]["model"],
        "device": f"{run['environment']['cpu']}, {run['environment']['cores']} cores"
        if run["environment"]["device"] == "cpu"
        else run["environment"]["device"],
        "entry": run["subject"]["entry"],
        "unit": config["granularity"],
        "amount": config["amount"],
        "schedule": config.get("schedule", "one-shot"),
        "rounds": config.get("rounds", 1),
        "recovery": recovery.get("kind", "none"),
        "seconds": now["recovery_seconds"],
        "parameters": 1 - now["parameters"] / was["parameters"],
        "file": 1 - now["bytes"] / was["bytes"],
        "pictures": speed["pictures"] if speed else None,
        "speed": [speed["speedup"], *speed["speedup_ci95"]] if speed else None,
        "phantom": bool(speed) and results.is_phantom(nominal, speed["speedup"]),
        "psnr": [quality["psnr"]["value"], *quality["psnr"]["ci95"]] if "psnr" in quality else None,
        "other": other["value"] if other else None,
    }
