"""Random: the baseline that every criterion must beat.

    S ~ U[0, 1), drawn by a generator seeded with SHA-256(seed : name)

Each layer's numbers depend on its own name and the seed alone, so the order in which layers are scored changes nothing,
and pruning one layer more leaves the others' masks as they were. A fraction k / n of the *lowest* random scores is a
uniformly random subset of exactly k.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def random_scores(shape: Sequence[int], name: str, seed: int = 0) -> Tensor:
    """Scores of `shape`, fp32 on the CPU (whatever the weights' device), the same for the same name and seed."""
    return torch.rand(tuple(shape), generator=random_generator(name, seed))


def random_generator(name: str, seed: int) -> torch.Generator:
    """What draws a layer's scores; drawing them in pieces gives the same numbers."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
