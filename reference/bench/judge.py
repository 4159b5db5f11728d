"""What a quality protocol asks for, and what every picture of it is looked at with."""

import hashlib
from typing import NamedTuple

import yaml
from torch import Tensor

from reference.bench import acceptance, metrics
from reference.embedded import EMBEDDED
from reference.embedded.evaluator import Evaluator, load_evaluator
from reference.embedded.models import SIZE
from reference.embedded.openmoji import catalogue, drawings
from reference.embedded.pipeline import EmbeddedPipeline

APART = 1000  # seeds of noise and calibration are so far apart from one --seed to the next


class Judge(NamedTuple):
    """A protocol and what it needs."""

    protocol: dict
    sha256: str
    seed: int
    evaluator: Evaluator
    names: list[str]  # seen, then unseen
    gallery: list[str]
    drawings: tuple[list[str], Tensor]  # m names, (m, 3, size, size) in [-1, 1]: what the models were trained on
    device: str = "cpu"  # of the models; pictures are judged on the CPU

    def of(self, model: str) -> "Judge":
        """The same with the model's own guidance in the sampler, unless the protocol names one for all."""
        own = EmbeddedPipeline.load_config(EMBEDDED[model])["guidance_scale"]
        return self._replace(protocol=self.protocol | {"sampler": {"guidance": own} | self.protocol["sampler"]})

    def records(self, pictures: Tensor, dense: Tensor) -> list[dict]:
        """All metrics of pictures (s * p, 3, size, size); those of the drawings and prompts do not look at `dense`."""
        pictures, dense = (x.unflatten(0, (-1, len(self.names))) for x in (pictures, dense))
        seen = self.protocol["seen"]
        found = metrics.fidelity(self.evaluator, pictures, dense)
        found += metrics.distance(self.evaluator, pictures[:, :seen], self.drawings[1] / 2 + 0.5)
        for split, part in (("seen", slice(None, seen)), ("unseen", slice(seen, None))):
            if names := self.names[part]:
                found += metrics.retrieval(self.evaluator, pictures[:, part], names, self.gallery, split)
        if self.protocol.get("paired"):
            pair = pictures[:, :seen], dense[:, :seen]
            found += metrics.paired(self.evaluator, *pair, self.names[:seen], self.gallery)
        return found


def open_judge(text: str, seed: int = 0, device: str = "cpu") -> Judge:
    """What a protocol file with this text asks for; another seed draws all noise and calibration data anew.

    `drawings` of a protocol: how many of them distances and recovery look at; left out, all.
    """
    protocol = yaml.safe_load(text)
    for name in ("noise_seeds", "floor_seeds"):
        protocol[name] = [APART * seed + number for number in protocol[name]]
    if "calibration" in protocol:
        protocol["calibration"]["seed"] += APART * seed
    names = acceptance.listed_names(protocol["seen"]) + acceptance.unseen_names()[: protocol["unseen"]]
    gallery = [name for _, name in catalogue()]
    drawn = drawings(SIZE, count=protocol.get("drawings"))
    return Judge(protocol, file_hash(text), seed, load_evaluator(), names, gallery, drawn, device)


def file_hash(text: str) -> str:
    """SHA-256 of a protocol file with this text."""
    return hashlib.sha256(text.encode()).hexdigest()
