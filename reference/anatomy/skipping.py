"""Mask and cut of blocks: what a masked block returns, and what changes with a cut one.

A masked block passes on what it got, each residual stream unchanged: x_out = x_in for image, text, audio. Its result is
computed and thrown away by a forward hook, so a mask saves no time; it is the law that the cut is held to. A cut takes
the block out of its list and rewrites the config, so that plain `from_pretrained` builds and loads the shorter model.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reference.anatomy.blocks import UNET, BlockList, entry, has

# The residual streams of blocks with two, in the order in which the block returns them. Other blocks have one stream,
# their first argument.
PAIRS = (
    ("hidden_states", "audio_hidden_states"),
    ("vis", "aud"),
    ("und_seq", "gen_seq"),
    ("hidden_states", "encoder_hidden_states"),
)
TEXT_FIRST = ("Flux", "Bria", "Ovis", "LongCat", "Joint", "AuraFlow", "QwenImage")  # these return the text before it
# Modules that go with blocks and are none themselves.
STREAM_OF = {"RFD4ProteinaPairUpdate": "pairs"}
ADDED = ("WanAnimateFaceBlockCrossAttention", "PerceiverCrossAttention")  # forward adds their output: masked, it is 0

BLOCK_NUMBERS = ("layer_id", "block_id")  # attributes of a block that repeat its place
LENGTHS = (("depth", "blocks"), ("num_cross_attn", "perceiver_cross_attention"))  # model attribute, list it measures


def streams(block: nn.Module, args: tuple, kwargs: Mapping, output: object) -> list[tuple[Tensor, Tensor]]:
    """(x_in, x_out) of each residual stream of a block's call, in the order of its outputs."""
    given = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    outputs = output if isinstance(output, tuple) else (output,)
    names = _stream_names(block, len(outputs))
    return [(given[name], x_out) for name, x_out in zip(names, outputs, strict=True) if x_out is not None]


def _stream_names(block: nn.Module, outputs: int) -> tuple[str, ...]:
    kind, names = type(block).__name__, list(inspect.signature(block.forward).parameters)
    if outputs == 1:
        return (STREAM_OF.get(kind, names[0]),)
    pair = next(pair for pair in PAIRS if set(pair) <= set(names))
    return pair[::-1] if kind.startswith(TEXT_FIRST) else pair


def pass_on(block: nn.Module, args: tuple, kwargs: Mapping, output: object) -> object:
    """Forward hook of a masked block: its inputs in the place of its outputs."""
    if type(block).__name__ in ADDED:
        return torch.zeros_like(output)
    inputs = iter([x_in for x_in, _ in streams(block, args, kwargs, output)])
    if isinstance(output, tuple):
        return tuple(None if x_out is None else next(inputs) for x_out in output)
    return next(inputs)


def masked_blocks(root: nn.Module) -> list[str]:
    """Names of the blocks that are masked."""
    return [name for name, module in root.named_modules() if pass_on in module._forward_hooks.values()]


def blocks_at(root: nn.Module, group: BlockList, places: Sequence[int]) -> list[nn.Module]:
    """The blocks at these places, of all lists that go together."""
    model = root.get_submodule(group.denoiser)
    found = []
    for path, mirrored in group.lists:
        modules = model.get_submodule(path)
        for module in (modules[len(modules) - 1 - i if mirrored else i] for i in places):
            found += module.values() if isinstance(module, nn.ModuleDict) else [module]
    return found


def members(root: nn.Module, group: BlockList, places: Sequence[int]) -> list[nn.Module]:
    """All modules that go when the blocks at these places go."""
    model = root.get_submodule(group.denoiser)
    return blocks_at(root, group, places) + [model.get_submodule(path) for path in _followers(group, places)]


def block_parameters(root: nn.Module, group: BlockList) -> int:
    """How many weights the blocks of a list hold together, those that stay included."""
    return sum(p.numel() for module in members(root, group, range(group.count)) for p in module.parameters())


def _followers(group: BlockList, places: Sequence[int]) -> Iterator[str]:
    """Paths of the modules that go with the patterns which begin at these places."""
    for number, bundle in enumerate(group.bundles):
        if group.follower and bundle[0] in places:
            # A dictionary's keys are places of blocks, a list's are numbers of patterns.
            by_place = group.follower == "pair_update_layers"
            yield f"{group.follower}.{bundle[0] if by_place else number}"


def check(group: BlockList, places: Sequence[int]) -> None:
    """Raise ValueError if blocks that stay are among the places, or a bundle is torn."""
    for place, why in group.stays:
        if place in places:
            raise ValueError(f"{group.name}: block {place} stays: {why}")
    for bundle in group.bundles:
        if 0 < len(set(bundle) & set(places)) < len(bundle):
            raise ValueError(f"{group.name}: blocks {', '.join(map(str, bundle))} go together or not at all")


def mask_blocks(root: nn.Module, removed: Mapping[BlockList, Tensor]) -> list[RemovableHandle]:
    """Make the blocks at the given places pass on their inputs; doing it twice changes nothing.

    Returns handles whose `remove` undoes it.
    """
    handles = []
    for group, places in removed.items():
        check(group, places.tolist())
        for module in members(root, group, places.tolist()):
            if pass_on not in module._forward_hooks.values():
                handles.append(module.register_forward_hook(pass_on, with_kwargs=True))
    return handles


def cut_blocks(root: nn.Module, removed: Mapping[BlockList, Tensor]) -> None:
    """Take the blocks at the given places out of their lists and rewrite the config."""
    for group, places in removed.items():
        gone, model = places.tolist(), root.get_submodule(group.denoiser)
        check(group, gone)
        if not gone:
            continue
        changes = _config_changes(model, group, gone)
        for path in sorted(_followers(group, gone), key=lambda path: -int(path.rpartition(".")[2])):
            _take_out(model, path, len(group.bundles[0]))
        offset = len(model.get_submodule(group.row.after)) if group.row.after else 0
        for i in sorted(gone, reverse=True):
            for path, mirrored in group.lists:
                modules = model.get_submodule(path)
                del modules[len(modules) - 1 - i if mirrored else i]
            if group.row.parallel and has(model, group.row.parallel):
                del model.get_submodule(group.row.parallel)[offset + i]
        _renumber(model, group, gone)
        if group.row is UNET:
            changes = unet_layers(model)
        rewrite_config(model, changes)


def _take_out(model: nn.Module, path: str, period: int) -> None:
    """Remove a follower from its list, or from its dictionary, whose later keys move up by a period."""
    owner, key = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    if isinstance(owner, nn.ModuleList):
        del owner[int(key)]
        return
    kept = {int(k) - period * (int(k) > int(key)): module for k, module in owner.items() if k != key}
    owner.clear()
    owner.update({str(k): module for k, module in kept.items()})


def _renumber(model: nn.Module, group: BlockList, gone: Sequence[int]) -> None:
    """Attributes that repeat the place of a block, or the length of a list."""
    kept = [i for i in range(group.count) if i not in gone]
    for path, mirrored in group.lists:
        for new, block in enumerate(model.get_submodule(path)):
            for attribute in BLOCK_NUMBERS:
                if attribute in vars(block) and not mirrored:
                    setattr(block, attribute, vars(block)[attribute] - (kept[new] - new))
    for attribute, path in LENGTHS:
        if type(vars(model).get(attribute)) is int and has(model, path):
            setattr(model, attribute, len(model.get_submodule(path)))


def _config_changes(model: nn.Module, group: BlockList, gone: Sequence[int]) -> dict[str, object]:
    """What the config says without the blocks at the places `gone`."""
    row, config = group.row, model.config
    fewer = len(gone) // len(group.bundles[0]) if row.periods else len(gone) * (2 if row.mirrored else 1)
    name, _, place = row.key.partition(".")
    changes: dict[str, object] = {}
    if place:
        counts = list(config[name])
        counts[int(place)] -= fewer
        changes[name] = type(config[name])(counts)
    elif row is not UNET:
        changes[name] = config[name] - fewer
    offset = len(model.get_submodule(row.after)) if row.after else 0
    for key in row.entries:
        values = entry(config, key) or vars(model).get(key)
        if isinstance(values, tuple | list):
            changes[key] = type(values)(v for i, v in enumerate(values) if i - offset not in gone)
    for key in (*row.indices, *row.inputs):
        values = entry(config, key)
        if values:
            changes[key] = type(values)(v - sum(i < v for i in gone) for v in values if v not in gone)
    for key in row.first:
        if (entry(config, key) or 0) > 0:
            changes[key] = config[key] - sum(i < config[key] for i in gone)
    for key in row.last:
        if entry(config, key):
            changes[key] = config[key] - sum(i >= group.count - config[key] for i in gone)
    return changes


def unet_layers(model: nn.Module) -> dict[str, object]:
    """`transformer_layers_per_block` and its kin, read off a U-Net: one number a stage, or one an attention."""

    def counts(stages: Sequence[nn.Module], otherwise: int) -> list:
        found = []
        for stage in stages:
            each = [len(a.transformer_blocks) for a in getattr(stage, "attentions", ()) if has(a, "transformer_blocks")]
            found.append((each[0] if len(set(each)) == 1 else each) if each else otherwise)
        return found

    middle = "mid_block.attentions.0.transformer_blocks"
    otherwise = len(model.get_submodule(middle)) if has(model, middle) else 1
    down = counts(model.down_blocks, otherwise)
    changes: dict[str, object] = {UNET.key: down}
    if hasattr(model, "up_blocks"):
        changes[f"reverse_{UNET.key}"] = counts(model.up_blocks, otherwise)
    if "transformer_layers_per_mid_block" in model.config:
        changes["transformer_layers_per_mid_block"] = otherwise
    return changes


def rewrite_config(model: nn.Module, changes: Mapping[str, object]) -> None:
    """Register config entries anew, and set the attributes of the same name that the model keeps."""
    # Entries listed as defaults would be dropped when the config is used, and replaced by the class's defaults.
    defaults = [key for key in model.config.get("_use_default_values", ()) if key not in changes]
    model.register_to_config(**changes, _use_default_values=defaults)
    for key, value in changes.items():
        if type(vars(model).get(key)) in (int, list):
            setattr(model, key, value)
