"""The passes over a checkpoint that `out_of_core.py` makes: one to score where that is needed, one to write.

In both a tensor is in memory only while it lies in a buffer. Selection is by the same functions as in memory where they
take units or rows, and by `bit_select.py` where single weights are ranked.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Container, Iterator
from dataclasses import asdict
from pathlib import Path
from queue import Queue

import numpy as np
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reference import bit_select
from reference.anatomy import unit_groups
from reference.anatomy.groups import Group, compressed, cut_units, norm_factors, staying
from reference.bit_select import Cut, Keys
from reference.checkpoint import WEIGHTS, manifest_of, write_manifest
from reference.criteria.magnitude import unit_scores, weight_scores
from reference.criteria.random import random_generator
from reference.errors import NotPrunable
from reference.history import recorded
from reference.inspection import on_meta
from reference.on_disk import INDEX, Checkpoint, Shard
from reference.plans import SAMPLE, Plan
from reference.rates import pools
from reference.request import Request, parse_n_m
from reference.scoring import unit_scorer
from reference.select import count_to_remove, lowest_n_m, lowest_per_row
from reference.streaming import DTYPES, Entry, byte_count, read_ahead, rewrite, write_header
from reference.structured import remove_units
from reference.targets import weight_targets

ROWS = 1 << 20  # weights scored at once where a row is the scope
UNITS = 1 << 22  # weights whose squares are summed at once
RUN = 1024  # neighbours that one read of a sample takes
Change = Callable[[Entry, Tensor], Tensor]  # what to write for a tensor; may work in place


class Passes:
    """The passes over one checkpoint, which share its buffers."""

    def __init__(self, checkpoint: Checkpoint, request: Request, progress: Path, buffers: Queue) -> None:
        self.root, self.folders, self.shards = checkpoint
        self.request, self.progress, self.buffers = request, progress, buffers
        self.shapes = {entry.name: entry.shape for shard in self.shards for entry in shard.entries}
        self.dtypes = {entry.name: DTYPES[entry.dtype] for shard in self.shards for entry in shard.entries}
        self.plan = Plan(request.granularity, {}, {}, "", asdict(request))
        self.plan.request |= {"schedule": "one-shot", "rounds": 1, "recovered": False}
        self.dense = {name: on_meta(type(m), dict(m.config)) for name, m in self.denoisers().items()}
        self.bytes_read = 0

    def denoisers(self) -> dict[str, ModelMixin]:
        return dict(self.root.items()) if isinstance(self.root, nn.ModuleDict) else {"": self.root}

    def read(self, names: Container[str]) -> Iterator[tuple[Entry, Tensor]]:
        """One pass over these tensors, each valid until the next."""
        for shard in self.shards:
            wanted = [entry for entry in shard.entries if entry.name in names]
            for entry, part, buffer in read_ahead(shard.file, wanted, self.buffers):
                self.bytes_read += len(part)
                yield entry, entry.of(part)
                self.buffers.put(buffer)

    # --- weights ---------------------------------------------------------------------------------------------------

    def prepare_weights(self) -> tuple[Change, dict]:
        """What to do to each tensor, and what it amounts to."""
        layers, skipped = weight_targets(self.root, self.request)
        n_m = parse_n_m(self.request.granularity)
        rates, cuts, removed = {}, {}, 0
        groups = pools(self.root, layers, self.request) if not n_m else [(1 - n_m[0] / n_m[1], layers)]
        for rate, members in groups:
            sizes = {la.name: la.module.weight.numel() for la in members}
            n = sum(sizes.values())
            k = count_to_remove(rate, n)
            if self.request.scope == "row":
                k = sum(
                    len(la.module.weight) * count_to_remove(rate, sizes[la.name] // len(la.module.weight))
                    for la in members
                )
            removed += k
            rates |= dict.fromkeys(sizes, rate)
            for name in sizes:
                self.keys(name, wide=False)  # refuses what cannot be ranked before anything is read
            if self.request.scope in ("component", "global") and not n_m and k:
                cuts |= self.cuts([la.name for la in members], k, n)
        self.plan.skipped = skipped
        total = sum(la.module.weight.numel() for la in layers)
        facts = {"units": total, "removed": removed, "layers": len(layers), "skipped": len(skipped)}
        weights = {f"{la.name}.weight": la.name for la in layers}

        def change(entry: Entry, W: Tensor) -> Tensor:
            name = weights.get(entry.name)
            if name is None:
                return W
            if n_m or self.request.scope == "row":
                self.zero_rows(name, W, n_m, rates[name])
            elif name in cuts:
                cut, wide = cuts[name]
                bit_select.zero(bit_select.bits(W), self.keys(name, wide, known=True), cut)
            elif self.request.scope == "layer" and count_to_remove(rates[name], W.numel()):
                flat, k = bit_select.bits(W), count_to_remove(rates[name], W.numel())
                cut = bit_select.lowest_of_layer(flat, lambda: self.keys(name), k)
                bit_select.zero(flat, self.keys(name, known=True), cut)
            return W

        return change, facts

    def keys(self, name: str, wide: bool = False, known: bool = False) -> Keys:
        """The scores of a layer's weights by the requested criterion, as keys, from the first weight on."""
        if self.request.criterion == "random":
            return bit_select.random_keys(random_generator(name, self.request.seed))
        return bit_select.magnitude_keys(self.dtypes[f"{name}.weight"], wide, name, known)

    def cuts(self, names: list[str], k: int, n: int) -> dict[str, tuple[Cut, bool]]:
        """The exact cuts of layers that are ranked together, and whether their keys are wide."""
        saved = self.progress / f"cuts-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}.json"
        if saved.exists():
            wide, found = json.loads(saved.read_text())
            return {name: (Cut(*cut), wide) for name, cut in zip(names, found, strict=True)}
        wide = len({self.dtypes[f"{name}.weight"] for name in names}) > 1
        sample, widening, found = self.sample(names, n, wide), 1, None
        while found is None:
            low, high = bit_select.bracket(sample, k, n, widening)
            tallies = {}
            for entry, W in self.read({f"{name}.weight" for name in names}):
                name = entry.name.removesuffix(".weight")
                tallies[name] = bit_select.tally(bit_select.bits(W), self.keys(name, wide), low, high)
            found = bit_select.cuts([tallies[name] for name in names], k, low)
            widening *= 8
        write_whole(saved, json.dumps([wide, found]))
        return {name: (cut, wide) for name, cut in zip(names, found, strict=True)}

    def sample(self, names: list[str], n: int, wide: bool) -> np.ndarray:
        """Keys of some 2^20 of the n weights: short runs, evenly spread over all layers."""
        places = {entry.name: (shard.file, entry) for shard in self.shards for entry in shard.entries}
        every, found = max(RUN, n * RUN // (4 * bit_select.SAMPLE)), []
        for name in names:
            file, entry = places[f"{name}.weight"]
            itemsize, keys = self.dtypes[entry.name].itemsize, self.keys(name, wide)
            with open(file, "rb") as stream:
                for at in range(0, (entry.end - entry.start) // itemsize, every):
                    stream.seek(entry.start + at * itemsize)
                    run = stream.read(min(RUN * itemsize, entry.end - entry.start - at * itemsize))
                    found.append(keys(np.frombuffer(run, f"<u{itemsize}")))
        return np.concatenate(found)

    def zero_rows(self, name: str, W: Tensor, n_m: tuple[int, int] | None, rate: float) -> None:
        """Row scope and N:M: rows are independent, so some are scored at a time."""
        generator = random_generator(name, self.request.seed)
        step = max(1, ROWS // max(1, W[0].numel()))
        for at in range(0, len(W), step):
            rows = W[at : at + step]
            random = self.request.criterion == "random"
            S = torch.rand(rows.shape, generator=generator) if random else weight_scores(rows)
            if n_m:
                gone = lowest_n_m(S, *n_m)
            else:
                gone = lowest_per_row(S.flatten(1), count_to_remove(rate, W[0].numel())).reshape(rows.shape)
            rows.masked_fill_(gone, 0)

    # --- units -----------------------------------------------------------------------------------------------------

    def prepare_units(self) -> tuple[Change, dict]:
        """The same for heads, neurons and channels; the model without memory is cut here."""
        groups = {group.name: group for group in unit_groups(self.root, self.request.granularity)[0]}
        scorer = unit_scorer
        if self.request.criterion != "random":
            scores = self.scores(list(groups.values()))

            def scorer(*_: object) -> tuple[Callable[[Group], Tensor], dict]:
                return lambda group: scores[group.name], {}

        removed, self.plan.skipped = remove_units(self.root, self.request, scorer=scorer)
        chosen = Plan.of(self.request.granularity, removed, digest="")
        approximate = [
            groups[name].approximate for name, gone in removed.items() if gone.any() and groups[name].approximate
        ]
        if approximate and self.request.exact_only:
            raise NotPrunable(f"cutting {len(approximate)} groups only approximates masking them: {approximate[0]}")
        self.plan.keep, self.plan.shapes = chosen.keep, chosen.shapes
        units = {groups[name]: gone.nonzero().flatten() for name, gone in removed.items()}
        kept = staying(self.root, units)
        factors = {}
        for group, gone in units.items():
            if len(gone):
                factors |= norm_factors(group, group.count - len(gone))
        with recorded(self.root, self.plan, "cut"):
            cut_units(self.root, units)
        self.shapes |= {name: tuple(p.shape) for name, p in self.root.named_parameters()}

        def change(entry: Entry, W: Tensor) -> Tensor:
            if entry.name in factors:
                W.mul_(factors[entry.name])
            for dim in range(W.ndim):
                if (entry.name, dim) in kept:
                    W = compressed(W, dim, kept[entry.name, dim])
            return W

        total = sum(gone.numel() for gone in removed.values())
        gone = sum(int(mask.sum()) for mask in removed.values())
        return change, {"units": total, "removed": gone, "layers": len(removed), "skipped": len(self.plan.skipped)}

    def scores(self, groups: list[Group]) -> dict[str, Tensor]:
        """Magnitudes (units,) of every group: one pass over the tensors that its units span."""
        saved = self.progress / "scores.safetensors"
        if saved.exists():
            return load_file(saved)
        p = 1 if self.request.criterion == "magnitude-l1" else 2
        spans: dict[str, list[tuple[Group, int]]] = {}
        for group in groups:
            for i, s in enumerate(group.slices):
                if s.masked:
                    spans.setdefault(s.parameter, []).append((group, i))
        parts: dict[tuple[str, int], Tensor] = {}
        for entry, W in self.read(spans):
            for group, i in spans[entry.name]:
                s = group.slices[i]
                span = W.narrow(s.dim, s.start, s.width * group.count)
                step = max(1, UNITS * group.count // span.numel())  # units at once
                parts[group.name, i] = torch.cat(
                    [
                        unit_scores([(span.narrow(s.dim, at * s.width, count * s.width), s.dim)], count, p)
                        for at in range(0, group.count, step)
                        for count in [min(step, group.count - at)]
                    ]
                )
        scores = {group.name: torch.zeros(group.count) for group in groups}
        for group in groups:  # added in the order of the slices, as in memory
            for i in (i for i, s in enumerate(group.slices) if s.masked):
                scores[group.name] = scores[group.name] + parts[group.name, i]
        save_file(scores, saved.with_suffix(".new"))
        os.replace(saved.with_suffix(".new"), saved)
        return scores

    # --- the pass that writes --------------------------------------------------------------------------------------

    def write(self, partial: Path, change: Change) -> None:
        """All files of all denoisers, then what is said about them."""
        parameters = {name for name, _ in self.root.named_parameters()}
        for component, model in self.denoisers().items():
            mine = [shard for shard in self.shards if shard.component == component]
            folder = partial / component
            folder.mkdir(exist_ok=True)
            manifest = manifest_of(model, self.dense[component], "dense")
            outputs = [(WEIGHTS, mine)] if manifest["shapes"] else [(shard.file.name, [shard]) for shard in mine]
            for name, shards in outputs:
                self.write_file(folder / name, shards, change, parameters)
        fingerprint = self.digest()
        if not self.plan.keep:
            with recorded(self.root, self.plan, "cut"):
                pass
        for component, model in self.denoisers().items():
            model._pruning_history[-1]["digest"] = fingerprint
            shutil.copy2(self.folders[component] / "config.json", partial / component / "config.json")
            manifest = manifest_of(model, self.dense[component], "dense")
            if not manifest["shapes"] and (self.folders[component] / INDEX).exists():
                shutil.copy2(self.folders[component] / INDEX, partial / component / INDEX)
            write_manifest(partial / component, manifest, model)

    def write_file(self, file: Path, shards: list[Shard], change: Change, parameters: set[str]) -> None:
        """One output file from one or several input files; each of these that is done is noted."""
        prefix = f"{shards[0].component}." if shards[0].component else ""
        tensors = [
            (e.name.removeprefix(prefix), e.dtype, self.shapes[e.name]) for shard in shards for e in shard.entries
        ]
        header = write_header(shards[0].metadata or {"format": "pt"}, tensors)
        out = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.pwrite(out, header, 0)
            at = len(header)
            for shard in shards:
                done = self.progress / f"{prefix}{shard.file.name}"
                end = at + sum(byte_count(e.dtype, self.shapes[e.name]) for e in shard.entries)
                if not done.exists():
                    samples: dict[str, Tensor] = {}

                    def watched(entry: Entry, W: Tensor, samples: dict[str, Tensor] = samples) -> Tensor:
                        if entry.name in parameters:
                            flat = W.reshape(-1)
                            samples[entry.name] = flat[:: max(1, len(flat) // SAMPLE)].clone()
                        return change(entry, W)

                    rewrite(shard.file, shard.entries, self.buffers, watched, out, at)
                    os.fsync(out)
                    save_file(samples, done.with_suffix(".new"))
                    os.replace(done.with_suffix(".new"), done)
                    self.bytes_read += sum(e.end - e.start for e in shard.entries)
                at = end
        finally:
            os.close(out)

    def digest(self) -> str:
        """`plans.digest` of the model on disk, from the samples that the passes took."""
        samples: dict[str, Tensor] = {}
        for shard in self.shards:
            prefix = f"{shard.component}." if shard.component else ""
            samples |= load_file(self.progress / f"{prefix}{shard.file.name}")
        dense = nn.ModuleDict(self.dense) if isinstance(self.root, nn.ModuleDict) else self.dense[""]
        fingerprint = hashlib.sha256()
        for name, parameter in dense.named_parameters():
            fingerprint.update(f"{name} {tuple(parameter.shape)} {self.dtypes[name]}\n".encode())
            fingerprint.update(samples[name].view(torch.uint8).numpy().tobytes())
        return fingerprint.hexdigest()


def write_whole(file: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    os.replace(beside, file)
