"""Method pages: one for every entry and criterion, each figure from a run, each equation beside code that exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from reference import __main__ as command_line
from reference.request import SERVES, WITHOUT_DATA
from scripts import catalog, chooser, method_runs, methods, quality
from scripts.palette import variable

PAPERS = catalog.read(catalog.ROOT / "papers.yaml").data
NAV = (catalog.ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return methods.pages(PAPERS, catalog.vocabulary().data, "https://example.org/repo")[0]


@pytest.fixture(scope="module")
def found() -> dict:
    return method_runs.cells(method_runs.published())


def run(criterion: str, error: float, low: float, high: float, seconds: float = 1.0, recovery: float = 0.0) -> dict:
    return {
        "run_id": criterion,
        "status": "ok",
        "subject": {"is_baseline": False, "model": "m", "entry": "head", "baseline_run": "dense"},
        "config": {"granularity": "head", "amount": 0.5, "criterion": criterion, "scope": "layer"},
        "achieved": {"unit_rate": 0.5, "prune_seconds": seconds, "recovery_seconds": recovery},
        "quality": [{"metric": "prediction_error", "value": error, "ci95": [low, high]}],
    }


def test_every_entry_and_criterion_has_a_page_in_the_menu(pages):
    assert list(methods.CRITERIA) == list(SERVES)
    assert set(pages) == {"index", *methods.ENTRIES, *SERVES}
    for name in pages:
        assert f"generated/methods/{name}.md\n" in NAV
    for name in SERVES:
        assert f"]({name}.md)" in pages["index"]


def test_equations_stand_beside_code_that_exists(pages):
    equations = yaml.safe_load(methods.EQUATIONS.read_text(encoding="utf-8"))
    assert set(equations) == {*methods.ENTRIES, *SERVES}
    for name, listed in equations.items():
        page = pages[name]
        assert page.count("<math ") == sum(equation["latex"].count(r"\qquad") + 1 for equation in listed) > 0
        for math in re.findall(r"<math .*?</math>", page):
            assert "\\" not in re.sub("<[^>]+>", "", math), name  # LaTeX that was not understood
        for equation in listed:
            code, path, line = methods.function(equation["code"])
            assert (catalog.ROOT / path).read_text(encoding="utf-8").splitlines()[line - 1].startswith("def ")
            assert f"https://example.org/repo/blob/main/{path}#L{line}" in page
            assert '"""' not in code


def test_pages_hold_the_figures_of_the_runs(pages, found):
    for cell, runs in found.items():
        best = runs[0]
        value = method_runs.metric(best, "prediction_error")["value"]
        assert value == min(method_runs.metric(r, "prediction_error")["value"] for r in runs)
        assert method_runs.figure(best) in pages[method_runs.criterion(best)], cell
    engine = next(cell for cell in found if cell.granularity == "weight" and cell.suite == "engine")
    rows = re.findall(r'<th scope="row"><a href="([\w-]+)\.html"', pages["unstructured"])
    assert rows[: len(found[engine])] == [method_runs.criterion(r) for r in found[engine]]


def test_help_is_judged_by_intervals_and_recovered_runs_do_not_count():
    runs = [run("magnitude", 0.5, 0.45, 0.55), run("taylor", 0.3, 0.28, 0.32), run("obs", 0.29, 0.27, 0.31)]
    runs += [run("wanda", 0.46, 0.42, 0.5), run("learned", 0.1, 0.1, 0.1, recovery=20.0)]
    found = method_runs.cells({"engine": runs})
    (cell,) = found
    assert [method_runs.criterion(r) for r in found[cell]] == ["obs", "taylor", "wanda", "magnitude"]
    (taylor,) = method_runs.verdicts("taylor", found)
    assert taylor[1:] == ("better", "0.300 against 0.500", 2)
    (wanda,) = method_runs.verdicts("wanda", found)  # its interval overlaps that of magnitude
    assert wanda.word == "no difference"
    (by_chance,) = method_runs.verdicts(
        "magnitude", method_runs.cells({"engine": [*runs, run("random", 0.2, 0.1, 0.3)]})
    )
    assert by_chance.word == "worse"
    assert method_runs.verdicts("learned", found) == []


def test_verdicts_of_many_rates_are_a_row_and_their_tables_are_folded():
    runs = [run("magnitude", 0.5, 0.4, 0.6), run("taylor", 0.3, 0.2, 0.35)]
    found = {method_runs.Cell("quality", "m", "head", rate): runs[::-1] for rate in (0.3, 0.5, 0.7)}
    *_, row = method_runs.verdict_table(method_runs.verdicts("taylor", found), found)
    better = "<br>".join(f"{rate} %: 0.300 against 0.500" for rate in (30, 50, 70))
    assert row == f"| head | `m`, quality | {better} | - | - | 1 of 2 |"
    half, others = method_runs.ranked(found, "taylor")
    assert "head, 50 %" in half
    assert others.count("<table") == 2
    assert others.startswith("<details><summary>2 tables of other rates")


def test_worse_is_told_from_what_cannot_be_told_and_seeds_must_agree():
    def of_seeds(made: dict, *errors: float) -> dict:
        made["quality"][0]["per_seed"] = list(errors)
        return made

    magnitude = of_seeds(run("magnitude", 0.5, 0.45, 0.55), 0.4, 0.5, 0.6)
    runs = [magnitude, of_seeds(run("taylor", 0.7, 0.65, 0.75), 0.6, 0.7, 0.8)]
    runs += [of_seeds(run("wanda", 0.3, 0.25, 0.35), 0.45, 0.2, 0.25)]  # by its interval lower, not by its first seed
    found = method_runs.cells({"engine": runs})
    assert [verdict.word for verdict in method_runs.verdicts("taylor", found)] == ["worse"]
    assert [verdict.word for verdict in method_runs.verdicts("wanda", found)] == ["no difference"]


def test_magnitude_is_the_yardstick_and_not_the_best(found):
    """README and the quality page say so of the comparison of criteria."""
    lowest = {str(cell): method_runs.criterion(runs[0]) for cell, runs in found.items() if cell.suite == "engine"}
    assert len(lowest) == 6
    assert "magnitude" not in lowest.values()


def test_the_table_of_criteria_marks_all_that_cannot_be_told_from_the_lowest(pages, found):
    (weight,) = [runs for cell, runs in found.items() if cell.suite == "engine" and cell.granularity == "weight"]
    near = [method_runs.criterion(run) for run in weight if not method_runs.apart(weight[0], run)]
    assert near == ["obs", "obs-diff"]
    for name in SERVES:
        row = re.search(rf"^\| \[[^|]+\]\({name}\.md\) \| .*$", pages["index"], re.M)[0]
        assert row.split(" | ")[2].startswith("**") == (name in near), row


def test_the_best_scope_of_a_criterion_counts():
    worse, better = run("wanda", 0.4, 0.39, 0.41), run("wanda", 0.3, 0.29, 0.31)
    found = method_runs.cells({"engine": [worse, better]})
    assert list(found.values()) == [[better]]


def test_bars_and_curves_show_their_numbers():
    runs = [run("obs", 0.5, 0.4, 0.6), run("random", 2.0, 1.8, 2.5)]
    table = method_runs.bars(method_runs.Cell("engine", "m", "head", 0.5), runs, "obs")
    assert re.findall(r'<rect width="([\d.]+)"', table) == ["20.0", "80.0"]  # of 2.5, the highest end of an interval
    assert table.count(f"var({variable('head')})") == 1  # the page's own criterion; the other one is grey
    points = [(0.1, 1.0, 0.9, 1.1), (0.5, 2.0, 1.9, 2.1), (0.9, 4.0, 3.9, 4.1)]
    lines = [method_runs.Line("a", points, True), method_runs.Line("b", points, False)]
    chart = method_runs.curve("Error", "rate", lines, "head")
    ys = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', chart)][:3]
    assert ys[0] > ys[1] > ys[2] > 0
    assert (ys[0] - ys[1]) * 2 == pytest.approx(ys[1] - ys[2], abs=0.3)
    assert ">a</text>" in chart  # the second name would lie over the first
    assert ">b</text>" not in chart


def test_what_was_measured_elsewhere_leads_to_headings_that_exist(pages):
    headings = {
        f"{name}.md#" + re.sub(r"[^\w]+", "-", line[3:].lower()).strip("-")
        for name, page in quality.pages([])[0].items()
        for line in page.splitlines()
        if line.startswith("## ")
    }
    assert set(methods.ELSEWHERE.values()) == set(methods.ON_PAGE) <= headings
    assert "](../recovery.md#what-training-afterwards-buys)" in pages["iterative"]
    assert '<a href="../runs.html#unit=channel&amp;state=current">' in pages["structured"]
    assert '<a href="../runs.html#criterion=taylor&amp;state=current">' in pages["taylor"]


def test_commands_of_a_page_name_the_prompts_that_their_criterion_needs(pages, tmp_path, monkeypatch):
    """A criterion that looks at data is refused without; the quickest of them runs as it stands, but for the steps."""
    commands = {name: re.findall(r"^(?:printf|python) .*$", page, re.M) for name, page in pages.items()}
    for name in SERVES:
        assert (" --prompts prompts.txt " in commands[name][-1]) == (name not in WITHOUT_DATA), name
        assert len(commands[name]) == (1 if name in WITHOUT_DATA else 2), name
    assert "--criterion output-energy --prompts prompts.txt" in commands["low-rank"][-1]
    monkeypatch.chdir(tmp_path)
    written, prune = commands["wanda"]
    subprocess.run(written, shell=True, check=True)
    assert Path("prompts.txt").read_text().splitlines() == ["red heart", "pizza", "cat face"]
    assert command_line.main([*shlex.split(prune)[3:], "--steps", "2"]) == 0
    assert Path("pruned/model_index.json").is_file()


def test_papers_of_a_page_are_those_of_the_catalogue(pages):
    wanted = {p["id"] for p in PAPERS if "wanda" in p["criterion"]}
    assert set(re.findall(r'href="\.\./papers/([\w.-]+)\.html"', pages["wanda"])) == wanted
    assert wanted
    several = {p["id"] for p in PAPERS if {"linear", "cubic", "exponential"} & set(p["schedule"])}
    assert set(re.findall(r'href="\.\./papers/([\w.-]+)\.html"', pages["iterative"])) == several


def test_a_method_without_papers_asks_for_one_where_that_is_explained():
    section = " ".join(methods.papers_section([], "Papers", ""))
    link = re.search(r"\[Contribute one\]\((.+?)\)", section)[1]
    assert (catalog.ROOT / "site/generated/methods" / link).resolve().is_file()


def test_a_paper_leads_to_the_pages_of_its_method():
    paper = next(p for p in PAPERS if p["id"] == "obs-diff")
    names = [re.search(r"methods/([\w-]+)\.md", link)[1] for link in methods.links_of(paper, "../")]
    assert names == ["unstructured", "semi-structured", "structured", "head", "obs-diff"]
    nothing = {"id": "x", "granularity": ["token"], "criterion": ["other"], "schedule": []}
    assert methods.links_of(paper | nothing, "") == []
    paper = next(p for p in PAPERS if p["id"] == "diff-pruning")
    assert [link.split("/")[-1] for link in methods.links_of(paper, "")][-3:] == [
        "diff-pruning.md)",
        "diff-pruning-script.md)",
        "diff-pruning-experiments.md)",
    ]


def test_pages_are_rendered_without_torch():
    code = "import sys, scripts.render; sys.exit(any(name in sys.modules for name in ('torch', 'diffusers')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=catalog.ROOT, check=False).returncode == 0


def test_the_chooser_takes_runs_that_were_not_timed_and_sessions_that_were_resumed():
    published = method_runs.published()
    dense, timed = (
        next(r for r in published["embedded"] if r["subject"]["is_baseline"] is base) for base in (True, False)
    )
    asked = {"granularity": "head", "amount": 0.2, "criterion": "obs", "scope": "layer", "seed": 0}
    curve = timed | {"run_id": "a-curve", "speed": [], "config": timed["config"] | asked}
    curve["subject"] = timed["subject"] | {"baseline_run": "of an earlier session"}
    row = chooser.row(curve, [dense, curve])
    assert (row["criterion"], row["data"], row["speed"], row["saved"], row["pictures"]) == (
        "obs",
        True,
        None,
        None,
        None,
    )
    assert row["noise"] == method_runs.metric(dense, "psnr_other_noise")["value"]
    assert 0 < row["psnr"][1] < row["psnr"][0] < row["psnr"][2]
    saved = chooser.seconds_saved({"dense": {"median": 320.0}, "pictures": 16, "speedup": 2.0}, steps=10)
    assert saved == pytest.approx(0.1)  # 20 ms a picture and step, half of it saved, ten steps
