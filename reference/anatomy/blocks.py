"""Blocks: which lists of a model hold repeated residual blocks, and how its config says how long they are.

A row of `ROWS` describes a list by the attribute that holds it and the config entry that counts it. It applies to every
model that has both, if the count is true. What else depends on a block's place stands beside it:

    also      lists that lose the same places: one number counts them all, or forward walks them together
    mirrored  a list that loses the mirrored places: the other ends of skip connections, counted together with these
    entries   config lists with one entry a block: entries go with their blocks
    indices   config lists of block numbers: numbers go with their blocks, later ones shift
    inputs    the same, of blocks that get an input of their own, which is found by place: these blocks stay
    first     config numbers that count the first blocks of the list;  last: the last blocks
    pattern   (config entry, list): blocks repeat with a period, the number or length at the entry, and only whole
              periods can go; with them the modules of the list, one a period
    parallel  a module list with one entry a block, behind those of the blocks in `after`

Places that go together are a bundle; a block that can never go says why.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Row(NamedTuple):
    """One kind of list; the fields are explained above."""

    path: str
    key: str
    also: tuple[str, ...] = ()
    mirrored: str = ""
    entries: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    pattern: tuple[tuple[str, str], ...] = ()
    periods: bool = False  # the config counts periods, not blocks
    parallel: str = ""
    after: str = ""


# fmt: off
ROWS = (
    # The main blocks. {i}: every list of a list of lists; {-i}: counted from the end.
    Row("transformer_blocks", "num_layers",
        also=("temporal_transformer_blocks",),                                    # Latte
        indices=("dual_attention_layers",),                                       # SD3.5
        entries=("capacity_factors",),                                            # Nucleus
        first=("mmdit_layers",),                                                  # EasyAnimate
        pattern=(("cross_attn_interval", "perceiver_cross_attention"),)),         # ConsisID
    Row("transformer_blocks", "depth"),
    Row("single_transformer_blocks", "num_single_layers", last=("num_decoder_layers",)),  # the last: Motif
    Row("joint_transformer_blocks", "num_mmdit_layers"),
    Row("single_transformer_blocks", "num_single_dit_layers"),
    Row("double_blocks", "num_layers"),
    Row("double_stream_blocks", "num_layers", entries=("llama_layers",), parallel="caption_projection"),
    Row("single_stream_blocks", "num_single_layers", entries=("llama_layers",), parallel="caption_projection",
        after="double_stream_blocks"),
    Row("txt_mode_blocks", "num_layers", also=("mode_blocks.image", "mode_blocks.image_cond")),
    Row("transformer_layers", "num_hidden_layers"),
    Row("transformer_layers", "nlayers", pattern=(("update_pair_repr_every_n", "pair_update_layers"),)),
    Row("layers", "num_layers"),
    Row("layers", "num_hidden_layers", entries=("layer_types",)),                 # ACE-Step
    Row("layers", "n_layers", inputs=("injection_layer_ids",)),                   # Bria Fibo 2
    Row("blocks", "num_layers",
        inputs=("vace_layers",),                                                  # Wan VACE
        first=("chunk_plucker_post_attn_blocks",),                                # SANA-WM
        pattern=(("inject_face_latents_blocks", "face_adapter"), ("softmax_every_n", ""))),  # Wan Animate; SANA-WM
    Row("blocks", "dit_depth"),
    Row("blocks", "depth"),
    Row("blocks", "depth", pattern=(("3", ""),), periods=True),                   # Wuerstchen
    Row("decoders", "num_layers"),
    Row("visual_transformer_blocks", "num_visual_blocks"),
    Row("transformer_in_blocks", "num_layers", mirrored="transformer_out_blocks"),
    Row("transformer.transformer_in_blocks", "num_layers", mirrored="transformer.transformer_out_blocks"),
    Row("decoder.det_stages.{i}", "decoder_stage_depths.{i}"),
    Row("decoder.diff_blocks", "decoder_stage_depths.-1"),
    Row("down_blocks.{i}", "down_num_layers_per_block.{i}", pattern=(("block_types_per_layer.{i}", ""),), periods=True),
    Row("up_blocks.{i}", "up_num_layers_per_block.{i}", pattern=(("block_types_per_layer.{-i}", ""),), periods=True),
    # Before and beside them
    Row("context_embedder.token_refiner.refiner_blocks", "num_refiner_layers"),
    Row("token_refiner.refiner_blocks", "num_refiner_layers"),
    Row("noise_refiner", "num_refiner_layers", also=("context_refiner",)),
    Row("noise_refiner", "n_refiner_layers", also=("context_refiner", "siglip_refiner")),
    Row("perceiver.layers", "perceiver_num_layers"),
    Row("text_fusion.layerwise_blocks", "num_layerwise_text_blocks"),
    Row("text_fusion.refiner_blocks", "num_refiner_text_blocks"),
    Row("text_transformer_blocks", "num_text_blocks"),
    Row("video_text_transformer_blocks", "num_text_blocks", also=("audio_text_transformer_blocks",)),
    Row("transformer_layes", "num_trans_layer"),                                  # spelled so
)
# fmt: on
# The lists inside the attentions of a U-Net, counted by one entry for each attention.
UNET = Row("", "transformer_layers_per_block")

BY_PLACE = "every block has an output of its own, which a transformer adds by place"
ALONE = "it has no blocks of its own, only a list of networks"
SKIPS = (
    "every residual block gives a skip connection to one on the way up; without it the others would be joined "
    "differently, which no mask computes"
)
BOTH_WAYS = f"{SKIPS}; one number of its config counts the transformer blocks of a stage on both ways"
# Classes whose blocks cannot go, for a reason that their lists do not show.
REFUSED = {
    "ChromaTransformer2DModel": "the modulation of every block is computed from its place among all blocks",
    "BriaFiboTransformer2DModel": "every block takes its own layer of the caller's text encoder, by place",
    "CosmosControlNetModel": BY_PLACE,
    "ZImageControlNetModel": "its blocks are borrowed from a transformer, or answer to one of its blocks each",
    "WuerstchenDiffNeXt": "one number of its config counts the blocks of a stage on both ways, one of which has a skip",
    "Kandinsky3UNet": "one number of its config counts the blocks of all stages on both ways",
    "UNet1DModel": "one number of its config, or none, counts the blocks of all stages, whose first change the width",
    "UNet2DModel": SKIPS,
    "UNet3DConditionModel": f"{SKIPS}; its transformers have one block each, which no config entry counts",
    "I2VGenXLUNet": f"{SKIPS}; its transformers have one block each, which no config entry counts",
    "UNetSpatioTemporalConditionModel": BOTH_WAYS,
    "AudioLDM2UNet2DConditionModel": BOTH_WAYS,
    "UNetControlNetXSModel": BOTH_WAYS,
}


class BlockList(NamedTuple):
    """The blocks of one list: units that compete.

    lists     (path, mirrored) within the denoiser: the list itself and those that lose the same places
    bundles   places that go together; places in no bundle stay
    stays     (place, why) of blocks that can never go
    follower  path of the modules that go with a bundle, one a bundle, or ""
    """

    name: str
    count: int
    denoiser: str  # where in the root the model is, "" for the root itself
    row: Row
    lists: tuple[tuple[str, bool], ...]
    bundles: tuple[tuple[int, ...], ...]
    stays: tuple[tuple[int, str], ...] = ()
    follower: str = ""
    component: str = "other"
    approximate: str = ""
    refused: str = ""


def block_lists(denoiser: str, model: nn.Module) -> list[BlockList]:
    """The lists of blocks of a model, found at `denoiser`, from which something can go."""
    config = getattr(model, "config", {})
    refused = REFUSED.get(type(model).__name__, "")
    refused = BY_PLACE if has(model, "controlnet_blocks") else ALONE if has(model, "nets") else refused
    groups = [g for row in ROWS for numbered in _stages(row, model) for g in _of_row(model, config, numbered)]
    groups += _of_unet(model, config)
    if not groups and has(model, "down_blocks"):
        refused = refused or f"{SKIPS}; its transformers hold one block each"
    named = [g._replace(name=f"{denoiser}.{g.name}".strip("."), denoiser=denoiser, refused=refused) for g in groups]
    if refused and not named:
        named = [BlockList(denoiser, 0, denoiser, UNET, (), (), refused=refused)]
    return named


def _stages(row: Row, model: nn.Module) -> Iterator[Row]:
    """The row, or one for every list in its list of lists."""
    parent = row.path.partition(".{i}")[0]
    if parent == row.path:
        yield row
    elif has(model, parent):
        for i, stage in enumerate(model.get_submodule(parent)):
            if isinstance(stage, nn.ModuleList):
                pattern = tuple((k.format(i=i, **{"-i": -1 - i}), follower) for k, follower in row.pattern)
                yield row._replace(path=row.path.format(i=i), key=row.key.format(i=i), pattern=pattern)


def _of_row(model: nn.Module, config: dict, row: Row) -> Iterator[BlockList]:
    """The list that the row describes, if the model has it and the config counts it."""
    counted = entry(config, row.key)
    if not has(model, row.path) or counted is None:
        return
    blocks = model.get_submodule(row.path)
    period, follower = _period(model, config, row)
    if counted != (len(blocks) // period if row.periods else len(blocks) * (2 if row.mirrored else 1)):
        return
    stays = dict(_stays(model, config, row, blocks))
    count = len(blocks)
    if hasattr(blocks[-1], "skip_linear"):  # HunyuanDiT: block i gives its output to block n - 1 - i
        bundles = [(i, count - 1 - i) for i in range(count // 2 - 1)]
        stays |= {i: "the two blocks in the middle have no skip connection" for i in (count // 2 - 1, count // 2)}
    else:
        bundles = [tuple(range(i, i + period)) for i in range(0, count - period + 1, period)]
        stays |= {i: "it begins a pattern that is not complete" for i in range(count - count % period, count)}
    if follower and count // period > len(model.get_submodule(follower)):  # RFD4 that updates after every block
        stays[count - 1] = "nothing follows the last block, which the config says of its place"
    bundles = [bundle for bundle in bundles if not stays.keys() & set(bundle)]
    lists = [(path, False) for path in (row.path, *row.also) if has(model, path)]
    lists += [(row.mirrored, True)] if row.mirrored else []
    if len(bundles) > 1 or (bundles and stays):
        yield BlockList(row.path, count, "", row, tuple(lists), tuple(bundles), tuple(sorted(stays.items())), follower)


def _period(model: nn.Module, config: dict, row: Row) -> tuple[int, str]:
    """After how many blocks the pattern repeats, and which list has one module a period."""
    for key, follower in row.pattern:
        value = int(key) if key.isdigit() else entry(config, key)
        period = len(value) if isinstance(value, tuple | list) else value
        if period and (not follower or has(model, follower)):
            return period, follower
    return 1, ""


def _stays(model: nn.Module, config: dict, row: Row, blocks: nn.ModuleList) -> Iterator[tuple[int, str]]:
    """(place, why) of the blocks that the config puts, or that forward expects, where they are."""
    end = len(blocks) - 1
    if getattr(blocks[end], "context_pre_only", False):
        yield end, "the last block has no text output, and the config gives the last block none"
    if hasattr(model, "proj_out_1"):
        yield 0, "the output layer reads the time embedding of the first block"
    if hasattr(model, "temp_pos_embed"):
        yield 0, "the positions in time are added inside the first pair"
    if row.parallel and row.after:
        yield end, "the text of the last block is also where the first one starts from"
    if any(entry(config, key) for key in row.last):
        yield end, "a decoder that lost all its blocks would leave another model"
    for key in row.inputs:
        for place in entry(config, key) or ():
            yield place, f"it gets an input of its own, by its place in {key}"
    by_place = str(entry(config, "dense_moe_strategy")).startswith("leave")
    for place, block in enumerate(blocks):
        if by_place and not getattr(block, "moe_enabled", True):
            yield place, "it has no experts, and the config says so of its place"
        if hasattr(block, "depthwise") and block.channelwise[0].in_features > block.depthwise.out_channels:
            yield place, "it takes the skip connection of its stage"


def _of_unet(model: nn.Module, config: dict) -> Iterator[BlockList]:
    """The transformer blocks inside the attentions of a U-Net, SDXL's above all; each attention has its own number.

    Where the config has no number for the middle, that of the last stage's first attention serves.
    """
    if entry(config, UNET.key) is None or not has(model, "down_blocks"):
        return
    last = f"down_blocks.{len(model.down_blocks) - 1}.attentions.0.transformer_blocks"
    middle = "mid_block.attentions.0.transformer_blocks"
    tied = has(model, last) and has(model, middle) and "transformer_layers_per_mid_block" not in config
    for path, module in model.named_modules():
        if not (".attentions." in path and path.endswith(".transformer_blocks")) or len(module) < 2:
            continue
        if not (tied and path == middle):
            lists = (path, middle) if tied and path == last else (path,)
            bundles = tuple((i,) for i in range(len(module)))
            yield BlockList(path, len(module), "", UNET, tuple((name, False) for name in lists), bundles)


def has(model: nn.Module, path: str) -> bool:
    """Whether the model has a list with something in it at that path."""
    try:
        return len(model.get_submodule(path)) > 0
    except (AttributeError, TypeError):
        return False


def entry(config: dict, key: str) -> object:
    """`config[key]`, or an entry of the list there: "decoder_stage_depths.2". None if there is none."""
    name, _, place = key.partition(".")
    value = config.get(name)
    if not place:
        return value
    return value[int(place)] if isinstance(value, tuple | list) else None
