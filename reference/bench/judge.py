"""What a quality protocol asks for, and what every picture of it is looked at with."""

import hashlib
from typing import NamedTuple

import yaml
from torch import Tensor

from reference.bench import acceptance, metrics
from reference.embedded.evaluator import Evaluator, load_evaluator
from reference.embedded.models import SIZE
from reference.embedded.openmoji import catalogue, drawings

APART = 1000  # seeds of noise and calibration are so far apart from one --seed to the next


class Judge(NamedTuple):
    """A protocol and what it needs."""

    protocol: dict
    sha256: str
    seed: int
    evaluator: Evaluator
    names: list[str]  # seen, then unseen
    gallery: list[str]
    drawn: Tensor  # (m, 3, size, size) in [0, 1]: the drawings that models were trained on

    def records(self, pictures: Tensor, dense: Tensor) -> list[dict]:
        """All metrics of pictures (s * p, 3, size, size); those of the drawings and prompts do not look at `dense`."""
        pictures, dense = (x.unflatten(0, (-1, len(self.names))) for x in (pictures, dense))
        seen = self.protocol["seen"]
        found = metrics.fidelity(self.evaluator, pictures, dense)
        found += metrics.distance(self.evaluator, pictures[:, :seen], self.drawn)
        for split, part in (("seen", slice(None, seen)), ("unseen", slice(seen, None))):
            if names := self.names[part]:
                found += metrics.retrieval(self.evaluator, pictures[:, part], names, self.gallery, split)
        if self.protocol.get("paired"):
            pair = pictures[:, :seen], dense[:, :seen]
            found += metrics.paired(self.evaluator, *pair, self.names[:seen], self.gallery)
        return found


def open_judge(text: str, seed: int = 0) -> Judge:
    """What a protocol file with this text asks for; another seed draws all noise and calibration data anew."""
    protocol = yaml.safe_load(text)
    for name in ("noise_seeds", "floor_seeds"):
        protocol[name] = [APART * seed + number for number in protocol[name]]
    if "calibration" in protocol:
        protocol["calibration"]["seed"] += APART * seed
    names = acceptance.listed_names(protocol["seen"]) + acceptance.unseen_names()[: protocol["unseen"]]
    gallery = [name for _, name in catalogue()]
    return Judge(protocol, file_hash(text), seed, load_evaluator(), names, gallery, drawings(SIZE)[1] / 2 + 0.5)


def file_hash(text: str) -> str:
    """SHA-256 of a protocol file with this text."""
    return hashlib.sha256(text.encode()).hexdigest()
