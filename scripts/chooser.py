"""What the chooser on the home page chooses from: published runs and printed claims, as a script of one assignment."""

import json

from reference.bench import results
from reference.request import WITHOUT_DATA
from scripts import claims, method_runs
from scripts.text import NOTE, newest_first, venue_of

CLAIMS = 5  # shown for a model that we did not measure
# Models of the vocabulary whose full-size architecture the latency suite has, and its name there.
TIMED = {
    "flux.1-dev": "flux.1-dev",
    "sd3.5-large": "sd3.5-large",
    "sdxl": "sdxl",
    "sd-1.5": "sd1.5",
    "dit-xl-2-256": "dit-xl-2-256",
    "pixart-sigma": "pixart-sigma-1024",
    "wan-2.1": "wan2.1-1.3b",
    "qwen-image": "qwen-image",
}


def script(published: dict[str, list[dict]], papers: list[dict], vocab: dict, subjects: str = "") -> str:
    """site/generated/data/runs.js: `window.measured = {...}`; all ratios come from the runs."""
    labels = {key: value["label"] for key, value in vocab["models"].items() if key != "other"}
    suites = [published[suite] for suite in ("embedded", "quality")]  # those that compare pictures
    rows = [row(run, runs) for runs in suites for run in runs if _usable(run)]
    claimed = {model: said for model in labels if (said := said_of(model, papers, vocab))}
    data = {"models": labels, "runs": rows, "timed": TIMED, "claims": claimed}
    data["subjects"] = subjects.replace("`", "")
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return f"/* {NOTE.format(source='results/ and papers.yaml')} */\nwindow.measured = {text};\n"


def _usable(run: dict) -> bool:
    return run["status"] == "ok" and not run["subject"]["is_baseline"]


def said_of(model: str, papers: list[dict], vocab: dict) -> dict | None:
    """How many papers on pruning work on a model, and some gains that they print, speed first."""
    about = [paper for paper in newest_first(papers) if model in paper["targets"] and paper["family"] == "pruning"]
    printed = [
        {
            "paper": paper["id"],
            "title": paper["title"].split(":")[0],
            "venue": venue_of(paper),
            "metric": vocab["metric"][claim["metric"]]["label"],
            "setting": claim["setting"],
            "numbers": [claim["dense"], claim["pruned"]],
            "unit": claim["unit"],
            "hardware": claim["hardware"],
        }
        for metric in claims.GAINS
        for paper in about
        for claim in paper.get("claims", [])
        if claim["metric"] == metric and claim["pruned"] is not None
    ]
    return {"papers": len(about), "printed": printed[:CLAIMS]} if about else None


def row(run: dict, runs: list[dict]) -> dict:
    """One run: what was done, what it bought with intervals, what it cost, where it stands."""
    dense = method_runs.dense_of(run, runs)
    config, now, was, machine = run["config"], run["achieved"], dense["achieved"], run["environment"]
    speed = max(run["speed"], key=lambda s: s["pictures"], default=None)
    quality = {q["metric"]: q for q in run["quality"]}
    noise = {q["metric"]: q for q in dense["quality"]}.get("psnr_other_noise")
    criterion = config.get("criterion", "magnitude")
    return {
        "id": run["run_id"],
        "protocol": run["protocol"]["id"],
        "suite": run["path"].parents[1].name,
        "prompts": len(config["prompts"]),
        "model": run["subject"]["model"],
        "device": machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores",
        "entry": run["subject"]["entry"],
        "unit": config["granularity"],
        "amount": config["amount"],
        "criterion": criterion,
        "data": criterion not in WITHOUT_DATA,
        "rounds": config.get("rounds", 1),
        "recovery": config.get("recovery", {}).get("kind", "none"),
        "seconds": now["recovery_seconds"],
        "parameters": 1 - now["parameters"] / was["parameters"],
        "file": 1 - now["bytes"] / was["bytes"],
        "pictures": speed["pictures"] if speed else None,
        "speed": [speed["speedup"], *speed["speedup_ci95"]] if speed else None,
        "saved": seconds_saved(speed, config["sampler"]["steps"]) if speed else None,
        "phantom": bool(speed) and results.is_phantom(was["macs"] / now["macs_nonzero"], speed["speedup"]),
        "psnr": [quality["psnr"]["value"], *quality["psnr"]["ci95"]] if "psnr" in quality else None,
        "noise": noise["value"] if noise else None,
    }


def seconds_saved(speed: dict, steps: int) -> float:
    """Seconds that the pruned model saves on one picture of `steps` steps, from the medians of the dense time."""
    dense = speed["dense"]["median"] / 1000 / speed["pictures"]
    return steps * dense * (1 - 1 / speed["speedup"])
