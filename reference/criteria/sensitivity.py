"""Greedy sensitivity: what the prediction loses when a block is gone, asked again after every removal.

    repeat:  l* = argmin over the blocks that are left of  E || eps_theta(x_t) - eps_(theta without R and l)(x_t) ||^2,
             R <- R and l*

The measure is the one of output distortion that depth pruners report as an oracle (leave one out); asking again makes
it greedy, so that two blocks that replace each other are not both taken for dispensable. n blocks, k removals and c
calls cost about n * k * c forward passes.
"""

from collections.abc import Callable, Sequence


def greedy(candidates: Sequence[int], k: int, error: Callable[[list[int]], float]) -> list[int]:
    """The k candidates that are removed, in this order; of equal errors the first one goes."""
    if not 0 <= k <= len(candidates):
        raise ValueError(f"cannot remove {k} of {len(candidates)} candidates")
    removed: list[int] = []
    for _ in range(k):
        left = [c for c in candidates if c not in removed]
        removed.append(min(left, key=lambda c: error([*removed, c])))
    return removed
