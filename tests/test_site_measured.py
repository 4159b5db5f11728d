"""The pages of measurements in Chromium, opened from disk: charts, the table of runs, two runs compared, the image lab,
the ledger of claims. Fixtures and the checks of every page (axe, phone, links) are those of test_site.py.
"""

import json
from pathlib import Path

import pytest

from scripts import catalog, figures_speed, lab, runs
from tests.test_site import BROWSER, PHONE, browser, site, tab  # noqa: F401

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: apt-get install chromium")
ROWS = runs.collect()
CHARTS = {
    "results": "pareto",
    "speed": "nominal",
    "quality": "components",
    "recovery": "recoveries",
    "damage": "quality-layers",
    "criteria": "criteria",
    "claims": "ledger",
}


def lines(page) -> list[str]:
    """Ids of the rows of a table that can be seen, in order."""
    return page.eval_on_selector_all(".sheet tbody tr:not([hidden])", "rows => rows.map(row => row.id)")


def drawn(page, chart: str):
    """The chart, once it is drawn."""
    page.wait_for_selector(f"#{chart}[data-drawn] svg")
    return page.locator(f"#{chart}")


# Charts


@pytest.mark.parametrize(("name", "chart"), CHARTS.items())
def test_chart_is_drawn_in_the_place_of_its_picture_with_a_table_beside_it(tab, name, chart):  # noqa: F811
    still = tab(f"generated/{name}.html", java_script_enabled=False).locator(f"#{chart}")
    assert still.locator(".plot svg").is_visible()
    assert still.locator("table tbody tr").count() > 3
    assert not still.locator("form").is_visible() if still.locator("form").count() else True
    page = tab(f"generated/{name}.html")
    live = drawn(page, chart)
    svg = live.locator(".plot svg")
    assert svg.get_attribute("aria-label") == page.evaluate("chart => window.charts[chart].description", chart)
    assert svg.locator(".mark-symbol path, .mark-rect path").count() > 3


def test_pointing_at_a_run_says_which_and_a_click_opens_its_row(tab):  # noqa: F811
    page = tab("generated/results.html")
    chart = drawn(page, "pareto")
    points = chart.locator(".mark-symbol:not(.role-legend-symbol) > path")
    expected = figures_speed.pareto(ROWS).spec["data"]["values"]
    assert points.count() == len(expected) == 13
    points.nth(0).hover()
    page.wait_for_selector("#vg-tooltip-element.visible")
    told = page.locator("#vg-tooltip-element").inner_text()
    assert expected[0]["run"] in told
    assert expected[0]["what"] in told
    points.nth(0).click()
    page.wait_for_url(f"**/runs.html#{expected[0]['run']}")
    assert page.locator(f"[id='{expected[0]['run']}']").is_visible()


def test_choosing_a_granularity_dims_the_rest(tab):  # noqa: F811
    page = tab("generated/results.html#pareto.unit=head")
    chart = drawn(page, "pareto")
    bright = "#pareto .mark-symbol:not(.role-legend-symbol) > path[opacity='1']"
    page.wait_for_function(f"document.querySelectorAll(`{bright}`).length === 3")  # the three rates of heads
    chart.locator("select[name=unit]").select_option("all")
    page.wait_for_function(f"document.querySelectorAll(`{bright}`).length === 13")


def test_a_choice_filters_the_chart_and_stands_in_the_address(tab):  # noqa: F811
    points = "#nominal .mark-symbol:not(.role-legend-symbol) > path"
    page = tab("generated/speed.html")
    chart = drawn(page, "nominal")
    everything = page.locator(points).count()
    chart.locator("select[name=work]").select_option("16 pictures")
    page.wait_for_function(f"document.querySelectorAll('{points}').length === {everything // 2}")
    assert page.url.endswith("#nominal.work=16+pictures")
    again = tab("generated/speed.html#nominal.work=16+pictures")
    drawn(again, "nominal")
    again.wait_for_function(f"document.querySelectorAll('{points}').length === {everything // 2}")
    page.go_back()
    page.wait_for_function(f"document.querySelectorAll('{points}').length === {everything}")
    assert chart.locator("select[name=work]").input_value() == "all"


def test_only_pages_with_charts_load_the_drawing_library(site):  # noqa: F811
    loading = {path.stem for path in site.rglob("*.html") if "charts/vega.js" in path.read_text(encoding="utf-8")}
    assert loading == set(CHARTS)
    assert "http" not in (site / "generated/charts/results.js").read_text(encoding="utf-8").split("data")[0].replace(
        "https://vega.github.io/schema/", ""
    )


@pytest.mark.parametrize(("name", "chart"), CHARTS.items())
def test_chart_fits_a_phone(tab, name, chart):  # noqa: F811
    page = tab(f"generated/{name}.html", **PHONE)
    box = drawn(page, chart).locator(".plot svg").bounding_box()
    assert 250 < box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


# All runs


def test_runs_are_filtered_sorted_and_the_view_stands_in_the_address(tab):  # noqa: F811
    page = tab("generated/runs.html")
    in_order = sorted(ROWS, key=lambda row: (runs.STATES.index(row.state), row.suite))  # current runs first
    assert lines(page) == [row.id for row in in_order]
    page.locator("[name=suite]").select_option("engine")
    page.locator("[name=unit]").select_option("neuron")
    assert set(lines(page)) == {row.id for row in ROWS if row.suite == "engine" and row.unit == "neuron"}
    assert page.locator(".sheet output").inner_text() == f"{len(lines(page))} of {len(ROWS)} shown"
    page.get_by_role("button", name="Error (95 %)").click()
    errors = {row.id: row.quality("prediction_error")["value"] for row in ROWS if row.quality("prediction_error")}
    assert lines(page) == sorted(lines(page), key=lambda run: -errors[run])
    page.get_by_role("button", name="Error (95 %)").click()
    assert lines(page) == sorted(lines(page), key=errors.__getitem__)
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Error")
    address = page.url.split("#")[1]
    assert dict(part.split("=") for part in address.split("&")) == {
        "suite": "engine",
        "unit": "neuron",
        "sort": "error",
    }
    again = tab(f"generated/runs.html#{address}")
    assert lines(again) == lines(page)
    assert again.locator("[name=unit]").input_value() == "neuron"
    page.go_back()
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.get_by_role("button", name="Clear all").click()
    page.wait_for_function(f"document.querySelectorAll('.sheet tbody tr:not([hidden])').length === {len(ROWS)}")
    assert lines(page) == [row.id for row in in_order]  # the order too
    assert page.url.split("#")[1:] in ([], [""])
    page.locator("[name=q]").fill("2:4 OBS-DIFF")
    assert lines(page) == [row.id for row in in_order if row.unit == "2:4" and row.criterion == "obs-diff"]


def test_runs_without_a_figure_stand_last_both_ways(tab):  # noqa: F811
    has = {row.id for row in ROWS if row.quality("psnr") or row.quality("psnr_other_noise")}
    page = tab("generated/runs.html#sort=psnr")
    assert set(lines(page)[: len(has)]) == has
    page = tab("generated/runs.html#sort=-psnr")
    assert set(lines(page)[: len(has)]) == has
    assert len(has) < len(ROWS)


def test_every_row_leads_to_its_result_file_and_to_how_it_was_made(tab, site):  # noqa: F811
    page = tab("generated/runs.html", java_script_enabled=False)
    assert len(lines(page)) == len(ROWS)
    assert not page.locator(".sheet form").is_visible()
    for row in ROWS:
        file = site / "generated" / "runs" / f"{row.id}.json"
        assert json.loads(file.read_text())["run_id"] == row.id
    one = page.locator(f"tr[id='{ROWS[-1].id}'] td:last-child a")
    made = page.locator(one.get_attribute("href")).inner_text()
    run = ROWS[-1].run
    assert run["code"]["commit"] in made
    assert " ".join(run["code"]["command"]).split(" --out ")[0] in made  # a folder of that machine is nobody's business
    assert run["protocol"]["sha256"] in made
    assert f"torch {run['environment']['torch']}" in made
    assert run["environment"]["cpu"] in made


def test_two_runs_are_compared_and_the_address_keeps_them(tab):  # noqa: F811
    now = [row for row in ROWS if row.suite == "embedded" and row.state == "current"]
    pair = one, two = [row for row in now if row.unit == "neuron" and row.amount == 0.5]  # at one shot, in rounds
    page = tab("generated/runs.html")
    for row in pair:
        page.get_by_role("checkbox", name=f"compare {row.id}").check()
    page.wait_for_selector("#compare table")
    text = page.locator("#compare").inner_text()
    assert "differs: the intervals are apart" in text  # recovery moves the PSNR by more than both intervals
    value = page.locator("#compare tr", has=page.locator("th", has_text="config recovery kind")).locator("td")
    assert value.all_inner_texts() == ["none", "distill", ""]
    psnr = page.locator("#compare tr", has=page.locator("th", has_text="quality psnr").first).first.locator("td")
    assert psnr.first.inner_text().startswith(f"{one.quality('psnr')['value']:.4g}")
    equal = page.locator("#compare details").inner_text()
    assert "fields that are equal" in equal
    assert page.url.endswith(f"#compare={one.id},{two.id}")
    again = tab(f"generated/runs.html#compare={one.id},{two.id}")
    again.wait_for_selector("#compare table")
    assert again.get_by_role("checkbox", name=f"compare {two.id}").is_checked()
    third = ROWS[0].id
    page.get_by_role("checkbox", name=f"compare {third}").check()  # pushes out the first
    page.wait_for_function(f"document.querySelector('#compare ul')?.textContent.includes('{third}')")
    assert not page.get_by_role("checkbox", name=f"compare {one.id}").is_checked()
    page.get_by_role("button", name="Close the comparison").click()
    assert page.locator("#compare table").count() == 0
    nonsense = tab("generated/runs.html#compare=nothing,%3Cb%3E&sort=nothing&suite=nothing")
    assert len(lines(nonsense)) == len(ROWS)


# Image lab


def test_the_lab_begins_with_the_worst_picture_and_keys_lead_through_it(tab):  # noqa: F811
    strips = lab.strips(ROWS)
    assert [min(strip.psnr) for strip in strips] == sorted(min(strip.psnr) for strip in strips)
    worst = strips[0]
    page = tab("generated/lab.html")
    order = sorted(range(len(worst.psnr)), key=worst.psnr.__getitem__)
    assert page.locator("[name=run]").input_value() == worst.row.id
    assert page.locator("[name=picture]").input_value() == worst.prompts[order[0]]
    assert f"{worst.psnr[order[0]]:.1f} dB" in page.locator(".told").inner_text()

    stage = page.locator(".stage")
    stage.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("[name=picture]").input_value() == worst.prompts[order[1]]
    page.keyboard.press("ArrowDown")
    assert page.locator("[name=run]").input_value() == strips[1].row.id
    page.keyboard.press("ArrowUp")
    for key, view in enumerate(("side", "slider", "flicker", "difference"), 1):
        page.keyboard.press(str(key))
        assert stage.get_attribute("data-view") == view
        assert page.locator(f"[value={view}]").is_checked()
    assert page.locator(".tile.pruned").evaluate("tile => getComputedStyle(tile).mixBlendMode") == "difference"


def test_the_lab_shows_the_right_piece_of_both_strips(tab):  # noqa: F811
    strip = lab.strips(ROWS)[0]
    at = len(strip.prompts) - 1
    page = tab(f"generated/lab.html#run={strip.row.id}&picture={strip.prompts[at].replace(' ', '+')}&view=side")
    for who, file in (("dense", strip.dense), ("pruned", strip.file)):
        tile = page.locator(f".tile.{who}")
        assert Path(file).name in tile.evaluate("tile => tile.style.backgroundImage")
        assert tile.evaluate("tile => tile.style.backgroundPosition").startswith("100%")
        assert strip.prompts[at] in tile.get_attribute("aria-label")
        box = tile.bounding_box()
        assert box["width"] == pytest.approx(box["height"], abs=1)
        assert tile.evaluate("tile => parseFloat(tile.style.backgroundSize)") == pytest.approx(100 * len(strip.prompts))


def test_the_slider_and_the_flicker_work_by_keyboard(tab):  # noqa: F811
    page = tab("generated/lab.html#view=slider", reduced_motion="reduce")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator(".tile.pruned").evaluate("tile => getComputedStyle(tile).clipPath") == "inset(0px 0px 0px 0%)"
    page.keyboard.press("End")
    assert page.locator(".stage").evaluate("stage => stage.style.getPropertyValue('--cut')") == "100%"
    page.locator(".stage").focus()
    page.keyboard.press("3")
    assert page.get_by_role("button", name="Start").is_visible()  # who wants less motion starts it himself
    assert page.locator(".tile.pruned").is_visible()
    page.keyboard.press("Space")
    assert not page.locator(".tile.pruned").is_visible()
    assert page.locator(".tool output").inner_text() == "dense"
    moving = tab("generated/lab.html#view=flicker")
    moving.wait_for_selector(".stage.dense-on-top")
    moving.get_by_role("button", name="Stop").click()
    assert moving.get_by_role("button", name="Start").is_visible()


def test_the_lab_keeps_its_state_in_the_address_and_its_pictures_without_a_script(tab):  # noqa: F811
    strips = lab.strips(ROWS)
    page = tab("generated/lab.html")
    page.locator("[name=run]").select_option(strips[2].row.id)
    page.locator("[name=view][value=difference]").check()
    again = tab("generated/lab.html#" + page.url.split("#")[1])
    assert again.locator("[name=run]").input_value() == strips[2].row.id
    assert again.locator("[name=view]:checked").input_value() == "difference"
    page.go_back()
    assert page.locator("[name=view]:checked").input_value() == "side"
    still = tab("generated/lab.html", java_script_enabled=False)
    assert not still.locator(".lab").is_visible()
    assert still.locator(".strips img").count() == 2 * len(strips)
    assert "OpenMoji" in still.locator("article").inner_text()
    assert "CC BY-SA 4.0" in still.locator("article").inner_text()


# Claimed against measured


def test_claims_are_found_by_facet_search_and_size(tab):  # noqa: F811
    page = tab("generated/claims.html")
    papers = catalog.read(catalog.ROOT / "papers.yaml").data
    count = sum(len(paper.get("claims", [])) for paper in papers)
    everything = len(lines(page))
    assert everything == count + 4  # and the founding note's
    page.locator("[name=verdict]").select_option("not reproduced")
    judged = lines(page)
    assert 0 < len(judged) < 20
    assert page.locator(f"[id='{judged[0]}']").locator("a", has_text="run").count() == 1
    page.locator("[name=verdict]").select_option("")
    page.locator("[name=metric]").select_option("FID")
    fid = sum(claim["metric"] == "fid" for paper in papers for claim in paper.get("claims", []))
    assert len(lines(page)) == fid
    assert "#metric=FID" in page.url
    page.locator("[name=q]").fill("obs-diff")
    assert all(run.startswith("claim_") for run in lines(page))
    assert len(lines(tab("generated/claims.html#" + page.url.split("#")[1]))) == len(lines(page))
    page.get_by_role("button", name="Clear all").click()
    page.wait_for_function(f"document.querySelectorAll('.sheet tbody tr:not([hidden])').length === {everything}")
    page.get_by_role("button", name="Claimed gain").click()
    heads = page.eval_on_selector_all(".sheet thead th", "cells => cells.map(cell => cell.textContent)")
    (column,) = [n for n, head in enumerate(heads) if head.startswith("Claimed gain")]
    gains = page.eval_on_selector_all(
        ".sheet tbody tr", f"rows => rows.map(row => row.cells[{column}].dataset.value).filter(Boolean).map(Number)"
    )
    assert gains == sorted(gains, reverse=True)
    assert len(gains) > 20
