"""Verdicts on claims: only a run that names a claim tests it, gains are compared, and the rest says what differs."""

import pytest

from scripts import catalog, claims

VOCAB = catalog.vocabulary(catalog.ROOT).data
PAPER = {"id": "alpha", "title": "Alpha", "family": "pruning", "granularity": ["head"], "recovery": ["none"]}
PAPER |= {"targets": ["sdxl"]}
CLAIM = {
    "id": "speed",
    "metric": "speed-up",
    "unit": "x",
    "dense": 1.0,
    "pruned": 1.4,
    "hardware": None,
    "setting": "s",
}


def runs(speedup: float, interval: list[float], **config: str) -> list[dict]:
    """A dense run and one with heads removed."""
    counts = {"parameters": 100, "macs": 100, "macs_nonzero": 100, "bytes": 200}
    dense = {"run_id": "d", "status": "ok", "config": {}, "achieved": counts, "environment": {"cpu": "a processor"}}
    dense["subject"] = {"model": "sdxl", "baseline_run": None, "entry": "dense"}
    speed = [{"pictures": 1, "speedup": speedup, "speedup_ci95": interval}]
    pruned = dense | {"run_id": "p", "speed": speed, "achieved": counts | {"parameters": 80, "bytes": 160}}
    pruned["subject"] = {"model": "sdxl", "baseline_run": "d", "entry": "head"}
    return [dense, pruned | {"config": {"granularity": "head", "amount": 0.5} | config}]


@pytest.mark.parametrize(
    ("speedup", "interval", "word"),
    [
        (1.36, [1.35, 1.37], "reproduced"),  # a gain of 0.36 is 90 % of 0.4
        (1.35, [1.34, 1.36], "partly"),
        (1.30, [1.10, 1.50], "reproduced"),  # the claim lies in the interval
        (1.20, [1.19, 1.21], "partly"),
        (1.19, [1.18, 1.20], "not reproduced"),
        (0.90, [0.80, 1.00], "not reproduced"),
    ],
)
def test_gains_are_compared(speedup, interval, word):
    found = claims.verdict(PAPER, CLAIM, runs(speedup, interval, claim="alpha/speed"), VOCAB)
    assert found.word == word
    assert found.measured == pytest.approx(speedup - 1)
    assert "a processor" in found.reasons[0]


def test_a_run_that_names_no_claim_tests_none():
    found = claims.verdict(PAPER, CLAIM, runs(1.4, [1.3, 1.5]), VOCAB)
    assert (found.word, found.run, found.reasons) == ("not comparable", None, ["no run names this claim"])


def test_shares_are_compared_in_their_unit():
    share = CLAIM | {"id": "share", "metric": "params-removed", "unit": "%", "dense": None, "pruned": 20}
    tested = runs(1.0, [0.9, 1.1], claim="alpha/share")
    assert claims.verdict(PAPER, share, tested, VOCAB)[:1] == ("reproduced",)
    assert claims.verdict(PAPER, share | {"unit": "x fewer"}, tested, VOCAB).word == "not comparable"


def test_reasons_name_what_differs():
    time = CLAIM | {"metric": "latency", "unit": "s", "hardware": "A100"}
    other = PAPER | {"granularity": ["block"], "targets": ["flux.1-dev"]}
    assert claims.reasons(other, time, runs(1.4, [1.3, 1.5]), VOCAB) == [
        "no run removes block",
        "another model (sdxl)",
        "an absolute figure on A100",
    ]
    assert "no run measures FID" in claims.reasons(PAPER, CLAIM | {"metric": "fid"}, runs(1, [1, 1]), VOCAB)


def test_runs_of_other_suites_count_for_the_reasons():
    blocks = PAPER | {"granularity": ["block"]}
    embedded = runs(1.4, [1.3, 1.5])
    assert claims.verdict(blocks, CLAIM, embedded, VOCAB).reasons == ["no run removes block"]
    deep = embedded[1] | {"config": {"granularity": "block"}, "quality": [{"metric": "psnr", "value": 20.0}]}
    deep["subject"] = {"model": "a-unet", "baseline_run": None, "entry": "depth"}
    assert claims.verdict(blocks, CLAIM, embedded, VOCAB, [deep]).reasons == ["no run names this claim"]
    elsewhere = blocks | {"targets": ["flux.1-dev"]}
    assert claims.verdict(elsewhere, CLAIM | {"metric": "psnr"}, embedded, VOCAB, [deep]).reasons == [
        "another model (a-unet, sdxl)",
        "PSNR of other pictures",
    ]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"metric": "sparsity", "unit": "%"}, ["a rate that was chosen, with no gain beside it"]),
        ({"metric": "params", "unit": "M", "dense": None}, ["no number of the dense model is printed"]),
        ({"metric": "flops", "unit": "x fewer", "dense": None}, ["no run names this claim"]),
        ({"metric": "params-removed", "unit": "%", "dense": None}, ["no run names this claim"]),
    ],
)
def test_what_is_no_gain_is_named(changed, why):
    assert claims.reasons(PAPER, CLAIM | changed, runs(1.4, [1.3, 1.5]), VOCAB) == why


def test_a_unit_that_no_page_names_is_said_to_be_unknown():
    unnamed = PAPER | {"granularity": ["unstated"]}
    assert claims.reasons(unnamed, CLAIM, runs(1.4, [1.3, 1.5]), VOCAB) == [
        "the pages seen do not name the removed unit"
    ]
