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
    dense |= {"quality": [], "speed": []}
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
        "our runs are of sdxl",
        "an absolute figure on A100",
    ]
    assert "no run measures FID" in claims.reasons(PAPER, CLAIM | {"metric": "fid"}, runs(1, [1, 1]), VOCAB)


def test_reasons_look_at_runs_of_every_suite():
    """A suite that measures quality alone removes blocks too: then the reason is that they were not timed."""
    dense, pruned = runs(1.4, [1.3, 1.5])
    untimed = pruned | {"config": {"granularity": "block"}, "speed": [], "quality": [{"metric": "psnr"}]}
    blocks = PAPER | {"granularity": ["block"]}
    assert claims.reasons(blocks, CLAIM, [dense, pruned, untimed], VOCAB) == ["no run that removes block was timed"]
    psnr = CLAIM | {"metric": "psnr", "unit": "dB"}
    assert claims.reasons(blocks, psnr, [untimed], VOCAB) == ["our PSNR is to the dense model's own pictures"]
    assert claims.reasons(blocks, psnr, [pruned], VOCAB) == ["no run removes block", "no run measures PSNR"]
    both = PAPER | {"granularity": ["block", "timestep"]}  # only what we remove is named
    assert claims.reasons(both, CLAIM, [untimed], VOCAB) == ["no run that removes block was timed"]
    unstated = PAPER | {"granularity": ["unstated"]}
    assert claims.reasons(unstated, CLAIM, [untimed], VOCAB) == ["what it removes is not stated"]
    assert claims.nearest(blocks, [untimed]) == []  # its row on a paper's page would have no speed


def test_the_founding_note_is_judged_by_timed_runs():
    pruned = runs(1.0, [0.9, 1.1])[1]
    weights = pruned | {"subject": pruned["subject"] | {"entry": "unstructured"}}
    weights["config"] = {"granularity": "weight", "amount": 0.5}
    dense = runs(1.0, [0.9, 1.1])[0]
    assert [row[0] for row in claims.founding([dense, weights, weights | {"speed": []}])] == [
        "50 % of the weights: smaller file",
        "50 % of the weights: faster",
    ]
