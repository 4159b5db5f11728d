"""What is handed in: a denoiser or a pipeline; which units it has, and what stands in the way of pruning it."""

from typing import NamedTuple

from diffusers import DiffusionPipeline, ModelMixin
from torch import nn

from reference.anatomy import unit_groups
from reference.anatomy.groups import group_parameters
from reference.anatomy.skipping import block_parameters
from reference.errors import NotPrunable
from reference.quantised import REMEDY, packed_weight
from reference.request import STRUCTURED, Request, parse_n_m
from reference.targets import weight_targets

# Names of pipeline components.
DENOISERS = ("transformer", "transformer_2", "unet", "prior", "decoder")
DENOISERS += ("unconditional_transformer", "prior_prior", "super_res_first", "super_res_last")
DENOISERS += ("image_unet", "text_unet", "diffusion_decoder")
# Hooks of diffusers that change dtypes only; others offload or cache, and remember parameters and blocks.
CASTS = ("layerwise_casting", "peft_autocast_disable")


class Units(NamedTuple):
    """One group of units: `count` of them, which hold `parameters` weights together."""

    name: str
    component: str
    count: int
    parameters: int


def units(model: nn.Module | DiffusionPipeline, granularity: str) -> list[Units]:
    """The groups of a granularity in module order; for `weight` and `N:M` the layers that are pruned by default."""
    root = as_root(model)
    if granularity in STRUCTURED:
        groups, _ = unit_groups(root, granularity)
        parameters = block_parameters if granularity == "block" else group_parameters
        return [Units(g.name, g.component, g.count, parameters(root, g)) for g in groups]
    layers, _ = weight_targets(root, Request(granularity, None if parse_n_m(granularity) else 0.0))
    return [Units(la.name, la.component, la.module.weight.numel(), la.module.weight.numel()) for la in layers]


def as_root(model: nn.Module | DiffusionPipeline) -> nn.Module:
    """The model itself, or a pipeline's denoisers under their component names, once nothing stands in the way.

    Raises NotPrunable, with the remedy, for models whose weights cannot be read or changed in place.
    """
    found = denoisers_of(model)
    for module in found.values():
        _check(module)
    return nn.ModuleDict(found) if isinstance(model, DiffusionPipeline) else model


def denoisers_of(model: nn.Module | DiffusionPipeline) -> dict[str, nn.Module]:
    """A pipeline's denoisers by component name; a model itself under the name "". NotPrunable if there are none."""
    if not isinstance(model, DiffusionPipeline):
        return {"": model}
    found = {name: model.components.get(name) for name in DENOISERS}
    found = {name: module for name, module in found.items() if isinstance(_inside(module), ModelMixin)}
    if not found:
        raise NotPrunable(f"{type(model).__name__} has no denoiser among {', '.join(DENOISERS)}")
    return found


def _inside(module: nn.Module | None) -> nn.Module | None:
    """What torch.compile wraps, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise NotPrunable("the model is compiled; prune the module inside (model._orig_mod), then compile")
    for layer in model.modules():
        if layer._compiled_call_impl is not None:
            raise NotPrunable(f"{name} was compiled in place, as a whole or block by block; prune first, then compile")
        if hasattr(layer, "_hf_hook"):
            raise NotPrunable(f"{name} carries offload hooks; prune before enabling offload, or remove the hooks")
        hooks = getattr(getattr(layer, "_diffusers_hook", None), "hooks", {})
        if others := [hook for hook in hooks if hook not in CASTS]:
            raise NotPrunable(f"{name} carries the hook {others[0]!r}; prune before enabling offload or caching")
        if hasattr(layer, "lora_A") or hasattr(layer, "base_layer"):
            raise NotPrunable(
                f"{name} carries adapters: pipeline.unload_lora_weights() drops them, pipeline.fuse_lora() before it "
                "keeps what they do"
            )
    for weight, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise NotPrunable(f"{weight} is on the meta device: load the weights before pruning")
    packed = packed_weight(model)
    if packed:
        raise NotPrunable(f"{packed}: {REMEDY}")
