"""What the caller asked for, checked before anything is touched."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STRUCTURED = ("head", "neuron", "channel", "block", "rank")
GRANULARITIES = ("weight", "N:M", *STRUCTURED)
# Which criterion serves which granularity, and in which scopes. N:M ranks within M neighbours whatever the scope.
ANY, LAYERS, LAYER = ("row", "layer", "component", "global"), ("layer", "component", "global"), ("layer",)
WIDTH = ("head", "neuron", "channel")
SERVES = {
    "magnitude": {"weight": ANY, "N:M": LAYER} | dict.fromkeys(STRUCTURED, LAYERS),
    "magnitude-l1": dict.fromkeys(WIDTH, LAYERS),
    "random": {"weight": ANY, "N:M": LAYER} | dict.fromkeys(STRUCTURED, LAYERS),
    "taylor": {"weight": ANY, "N:M": LAYER} | dict.fromkeys(WIDTH, LAYERS),
    "diff-pruning": dict.fromkeys(WIDTH, LAYERS),
    "diff-pruning-script": dict.fromkeys(WIDTH, LAYER),
    "diff-pruning-experiments": dict.fromkeys(WIDTH, LAYERS),
    "wanda": {"weight": ANY, "N:M": LAYER},
    "obs": {"weight": LAYER, "N:M": LAYER} | dict.fromkeys(WIDTH, LAYER),
    "obs-diff": {"weight": LAYER, "N:M": LAYER} | dict.fromkeys(WIDTH, LAYER),
    "head-gradient": {"head": LAYERS},
    "output-energy": dict.fromkeys((*WIDTH, "rank"), LAYERS),
    "learned": dict.fromkeys(WIDTH, LAYERS) | {"block": LAYER},
    "block-influence": {"block": LAYERS},
    "sensitivity": {"block": LAYERS},
}
WITHOUT_DATA = ("magnitude", "magnitude-l1", "random")  # the others need `calibration`


@dataclass(frozen=True)
class Request:
    """The keywords of `reference.plan`."""

    granularity: str
    amount: float | Mapping[str, float] | None = None
    criterion: str = "magnitude"
    scope: str = "layer"
    only: str | Sequence[str] | None = None
    skip: str | Sequence[str] | None = None
    round_to: int | str = "auto"
    min_keep: int = 1
    exact_only: bool = False
    seed: int = 0
    rank: int | None = None

    def __post_init__(self) -> None:
        kind = "N:M" if parse_n_m(self.granularity) else self.granularity
        if kind not in GRANULARITIES or self.granularity == "N:M":
            raise ValueError(
                f"unknown granularity {self.granularity!r}; choose weight, a pattern such as 2:4, "
                f"{', '.join(STRUCTURED[:-1])} or {STRUCTURED[-1]}"
            )
        if kind not in SERVES.get(self.criterion, {}):
            serving = [criterion for criterion, granularities in SERVES.items() if kind in granularities]
            raise ValueError(f"criterion {self.criterion!r} does not serve {kind}; choose {', '.join(serving)}")
        scopes = SERVES[self.criterion][kind]
        if self.scope not in scopes:
            raise ValueError(
                f"scope {self.scope!r} does not fit {kind} by {self.criterion}; choose {', '.join(scopes)}"
            )
        if self.round_to != "auto" and (not isinstance(self.round_to, int) or self.round_to < 1):
            raise ValueError(f"round_to is 'auto' or a whole number from 1 on, not {self.round_to!r}")
        if not isinstance(self.min_keep, int) or self.min_keep < 1:
            raise ValueError(
                f"min_keep is a whole number from 1 on, not {self.min_keep!r}: a layer must keep something"
            )
        if self.rank is not None:
            if kind != "rank" or self.amount is not None:
                raise ValueError("rank, the number of directions to keep, goes with granularity 'rank', without amount")
            if type(self.rank) is not int or self.rank < 1:
                raise ValueError(f"rank is a whole number from 1 on, not {self.rank!r}")
        elif kind == "N:M":
            n, m = parse_n_m(self.granularity)
            if self.amount is not None and self.amount != 1 - n / m:
                raise ValueError(f"{self.granularity} removes exactly {1 - n / m:g}; leave amount out, or change N:M")
        else:
            rates = self.amount.values() if isinstance(self.amount, Mapping) else [self.amount]
            for rate in rates:
                if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
                    raise ValueError(f"amount is a fraction in [0, 1), not {rate!r}; 1 would leave nothing of a layer")


def parse_n_m(granularity: str) -> tuple[int, int] | None:
    """(N, M) of a pattern such as "2:4", None for anything else."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", granularity)
    if not match:
        return None
    n, m = int(match[1]), int(match[2])
    if n >= m:
        raise ValueError(f"{granularity} keeps everything; N must be smaller than M")
    return n, m
