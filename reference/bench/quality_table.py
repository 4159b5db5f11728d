"""The quality suite's results on the terminal."""

from collections.abc import Iterator

from reference.bench import results

COLUMNS = (
    "model", "granularity", "scope", "criterion", "rate", "besides", "weights removed", "prediction error", "PSNR, dB",
    "SSIM", "kernel distance", "top 5, seen", "top 5, unseen",
)  # fmt: skip
FIRST = ("granularity", "scope", "criterion", "amount")
BESIDES = ("component", "schedule", "partner", "part")
SHOWN = (
    ("prediction_error", 3), ("psnr", 1), ("ssim", 3), ("kernel_distance", 3), ("retrieval_top5_seen", 2),
    ("retrieval_top5_unseen", 2),
)  # fmt: skip


def rows(runs: list[dict]) -> Iterator[list[str]]:
    """The runs as a table, the dense model of each first; a dense row shows the noise floor of PSNR and SSIM."""
    dense = {run["run_id"]: run["achieved"] for run in runs if run["subject"]["is_baseline"]}
    for run in sorted(runs, key=lambda run: [run["subject"]["model"], *_asked(run)]):
        left = [run["subject"]["model"], *(part or "-" for part in _asked(run))]
        if run["status"] != "ok":
            yield [*left, run["error"], *["-"] * (len(COLUMNS) - len(left) - 1)]
            continue
        was, now = dense[run["subject"]["baseline_run"] or run["run_id"]], run["achieved"]
        quality = {q["metric"].removesuffix("_other_noise"): q for q in run["quality"]}
        shown = [results.value(quality.get(metric), digits) for metric, digits in SHOWN]
        yield [*left, f"{100 * (1 - now['nonzero'] / was['nonzero']):.1f} %" if now else "-", *shown]


def _asked(run: dict) -> list[str]:
    config, recovery = run["config"], run["config"]["recovery"]
    besides = [str(config[name]) for name in BESIDES if name in config]
    besides += [] if recovery["kind"] == "none" else [recovery.get("loss", recovery["kind"])]
    return [*(str(config.get(name, "")) for name in FIRST), " ".join(besides)]
