"""The passes over a checkpoint on disk: some that read, whose findings are kept, and one that writes.

In all of them a tensor is in memory only while it lies in a buffer. What to do to each tensor is decided in
`weights_on_disk.py` and `units_on_disk.py`; this file moves the bytes, and says in the manifest what was done.
"""

import hashlib
import json
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference.anatomy import denoisers
from reference.manifest import PLAIN, WEIGHTS, manifest_of, write_manifest
from reference.on_disk import INDEX, Checkpoint, Shard
from reference.plans import SAMPLE, Plan
from reference.request import Request
from reference.streaming import DTYPES, Entry, byte_count, make_buffers, read_ahead, rewrite, write_header

Change = Callable[[Entry, Tensor], Tensor]


class Decision(NamedTuple):
    """What the writing pass does.

    change   tensor -> what to write for it; may work in place
    facts    what it amounts to: units, removed, layers, skipped
    renamed  name of a tensor -> its name in the result, None if it leaves
    added    tensors that the source does not have
    """

    change: Change
    facts: dict
    renamed: Callable[[str], str | None] = lambda name: name
    added: Mapping[str, Tensor] = {}


class Passes:
    """The passes over one checkpoint, which share its buffers.

    `root` is the model without memory; whoever decides cuts it, and fills in the plan.
    """

    def __init__(self, checkpoint: Checkpoint, request: Request, progress: Path) -> None:
        self.root, self.folders, self.shards = checkpoint
        self.request, self.progress, self.bytes_read = request, progress, 0
        self.places = {entry.name: (shard.file, entry) for shard in self.shards for entry in shard.entries}
        self.dtypes = {name: DTYPES[entry.dtype] for name, (_, entry) in self.places.items()}
        self.dense = {name: tuple(p.shape) for name, p in self.root.named_parameters()}
        self.plan = Plan(request.granularity, {}, {}, "", asdict(request))
        self.plan.request |= {"schedule": "one-shot", "rounds": 1, "recovered": False}
        self.make_buffers()

    def make_buffers(self) -> None:
        """Take the memory that the passes work in."""
        self.buffers = make_buffers(max(entry.end - entry.start for _, entry in self.places.values()))

    # --- reading ---------------------------------------------------------------------------------------------------

    def read(self, names: Container[str]) -> Iterator[tuple[Entry, Tensor]]:
        """These tensors in the order of the files, each valid until the next."""
        return self.read_in_order([name for name in self.places if name in names])

    def read_in_order(self, names: Sequence[str]) -> Iterator[tuple[Entry, Tensor]]:
        """These tensors in this order, each valid until the next."""
        for file, some in groupby(names, key=lambda name: self.places[name][0]):
            for entry, part, buffer in read_ahead(file, [self.places[name][1] for name in some], self.buffers):
                self.bytes_read += len(part)
                yield entry, entry.of(part)
                self.buffers.put(buffer)

    def found(self, what: str, find: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What a pass finds; it is made once, and a run that goes on after a kill reads the finding."""
        saved = self.progress / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.safetensors"
        if not saved.exists():
            save_whole(find(), saved)
        return load_file(saved)

    # --- writing ---------------------------------------------------------------------------------------------------

    def write(self, partial: Path, decision: Decision) -> None:
        """All files of all denoisers, then what is said about them."""
        manifests = {component: manifest_of(model, "dense") for component, model in denoisers(self.root).items()}
        for component, manifest in manifests.items():
            folder, where = partial / component, {}
            folder.mkdir(exist_ok=True)
            for name, shards in self.outputs(component, manifest, decision):
                where |= dict.fromkeys(self.write_file(folder / name, shards, decision), name)
            if not {*where.values()} <= {WEIGHTS, f"{PLAIN}.safetensors"}:
                tensors = denoisers(self.root)[component].state_dict()
                size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
                index = {"metadata": {"total_size": size}, "weight_map": where}
                (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        fingerprint = self.digest()
        for component, model in denoisers(self.root).items():
            manifests[component]["history"][-1]["digest"] = fingerprint
            model.save_config(partial / component)
            write_manifest(partial / component, manifests[component], model)

    def outputs(self, component: str, manifest: dict, decision: Decision) -> list[tuple[str, list[Shard]]]:
        """The weight files to write, and which of the source's files go into each.

        One where shapes differ from the config's. Else a file each; one of which nothing is left joins the next.
        """
        mine, files = [shard for shard in self.shards if shard.component == component], []
        if manifest["shapes"] or manifest["low_rank"]:
            return [(WEIGHTS, mine)]
        waiting = []
        for shard in mine:
            waiting.append(shard)
            if any(decision.renamed(entry.name) for entry in shard.entries):
                files.append(waiting)
                waiting = []
        files[-1] += waiting
        if len(files) == len(mine):
            return [(shards[0].file.name, shards) for shards in files]
        if len(files) == 1:
            return [(f"{PLAIN}.safetensors", files[0])]
        return [(f"{PLAIN}-{i:05d}-of-{len(files):05d}.safetensors", shards) for i, shards in enumerate(files, 1)]

    def write_file(self, file: Path, shards: list[Shard], decision: Decision) -> list[str]:
        """One output file from one or several input files, each of which is noted when done; names of its tensors."""
        prefix = f"{shards[0].component}." if shards[0].component else ""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.root.state_dict().items()}
        named = [[(decision.renamed(e.name), e.dtype) for e in shard.entries] for shard in shards]
        tensors = [[(name, dtype, shapes[name]) for name, dtype in names if name] for names in named]
        added = {name: tensor for name, tensor in decision.added.items() if name.startswith(prefix)}
        of_dtype = {dtype: name for name, dtype in DTYPES.items()}
        last = [(name, of_dtype[tensor.dtype], tuple(tensor.shape)) for name, tensor in added.items()]
        everything = [(name.removeprefix(prefix), *rest) for name, *rest in [*chain(*tensors), *last]]
        header = write_header(shards[0].metadata or {"format": "pt"}, everything)
        out = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(out, header, 0)
            at = len(header)
            for shard, written in zip(shards, tensors, strict=True):
                done = self.progress / f"{prefix}{shard.file.name}"
                if not done.exists():
                    save_whole(self.rewrite(shard, decision, out, at), done)
                at += sum(byte_count(dtype, shape) for _, dtype, shape in written)
            for tensor in added.values():
                at += os.pwrite(out, tensor.contiguous().view(torch.uint8).numpy(), at)
            os.fsync(out)
        finally:
            os.close(out)
        return [name for name, _, _ in everything]

    def rewrite(self, shard: Shard, decision: Decision, out: int, at: int) -> dict[str, Tensor]:
        """Write what becomes of one file; the samples of its parameters that `digest` needs."""
        samples: dict[str, Tensor] = {}

        def watched(entry: Entry, W: Tensor) -> Tensor | None:
            if entry.name in self.dense:
                flat = W.reshape(-1)
                samples[entry.name] = flat[:: max(1, len(flat) // SAMPLE)].clone()
            return decision.change(entry, W) if decision.renamed(entry.name) else None

        rewrite(shard.file, shard.entries, self.buffers, watched, out, at)
        os.fsync(out)
        self.bytes_read += sum(entry.end - entry.start for entry in shard.entries)
        return samples

    def digest(self) -> str:
        """`plans.digest` of the model on disk, from the samples that the writing pass took."""
        samples: dict[str, Tensor] = {}
        for shard in self.shards:
            prefix = f"{shard.component}." if shard.component else ""
            samples |= load_file(self.progress / f"{prefix}{shard.file.name}")
        fingerprint = hashlib.sha256()
        for name, shape in self.dense.items():
            fingerprint.update(f"{name} {shape} {self.dtypes[name]}\n".encode())
            fingerprint.update(samples[name].view(torch.uint8).numpy().tobytes())
        return fingerprint.hexdigest()


def save_whole(tensors: Mapping[str, Tensor], file: Path) -> None:
    """A file that is there whole or not at all."""
    save_file(dict(tensors), file.with_suffix(".new"))
    os.replace(file.with_suffix(".new"), file)
