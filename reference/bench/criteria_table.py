"""The engine suite's table, read from its runs: apart from the runner, so that pages are rendered without torch."""

from collections.abc import Iterator

from reference.bench import results

COLUMNS = (
    "granularity",
    "rate",
    "criterion",
    "scope",
    "prediction error",
    "of each seed",
    "error, early steps count more",
)


def rows(runs: list[dict]) -> Iterator[list[str]]:
    """A row a run, the best of a granularity first."""

    def order(run: dict) -> tuple:
        return run["subject"]["entry"], run["quality"][0]["value"] if run["quality"] else 0.0

    for run in sorted((run for run in runs if not run["subject"]["is_baseline"]), key=order):
        config, quality = run["config"], {q["metric"]: q for q in run["quality"]}
        left = [config["granularity"], results.percent(config.get("amount")), config["criterion"], config["scope"]]
        if run["status"] != "ok":
            yield [*left, run["error"], "-", "-"]
            continue
        error = quality["prediction_error"]
        each = ", ".join(f"{value:.3f}" for value in error["per_seed"])
        yield [*left, results.value(error, 3), each, results.value(quality["weighted_prediction_error"], 3)]
