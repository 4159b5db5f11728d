"""The layers that turn one conditioning vector e into the shifts, scales and gates of every block (AdaLN and its kin).

    modulation of layer l = W_l e + b_l,    e = SiLU(time embedding + ...), the same in all blocks

A unit is a direction of the inputs of all W_l that read the same e. The directions that stay are the rows of a basis B
that the layers share; mu is the mean of e, which is kept whole:

    mask   W_l <- W_l B^T B,     b_l <- b_l + (W_l - W_l B^T B) mu                   the dense shape
    cut    W'_l = W_l B^T,       b'_l = b_l + W_l mu,     W'_l (B (e - mu)) + b'_l   `LowRankLinear`

Which layers read the same vector is not written in any of them. What is: the part that makes the vector (the denoiser,
or a part of it with a time embedding of its own, such as each block of DiT), the input width and dtype, and the
activation in front. `python -m tests.coverage` watches the inputs of every group on every class, and fails where they
differ.

Shapes: r directions that stay, d inputs, o outputs of one layer.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import ModelMixin
from torch import Tensor, nn

from reference.anatomy.groups import Group, Slice
from reference.criteria.hessian import full_fp32

# What a modulation Linear is called, and what its module must have beside it.
BESIDE = {
    "linear": ("silu", "nonlinearity", "act_fn", "act", "norm"),  # AdaLayerNorm* and what is built like it
    "linear_1": ("norm",),  # last norms of Lumina and Mochi; Cosmos, as the first half of its adaLN-LoRA
    "out_layer": ("activation",),  # Kandinsky 5 and 6
}
NOT_BESIDE = ("in_layer", "linear_3")  # of feed-forwards and time embeddings
ACTIVATIONS = ("silu", "nonlinearity", "act_fn", "act", "activation")
RESIDUAL = ("time_emb_proj", "time_emb", "cond_embeds_mapper", "lin")  # their blocks apply the SiLU in forward
READY = ("adaln_modulation", "scale_bias", "mapper", "mapper_sca", "mapper_crp")  # fed by vectors of their own
SEQUENTIAL = ("adaLN_modulation", "img_mod", "txt_mod", "modulation", "context_mlp", "mlp")  # [SiLU, Linear]
OWN_EMBEDDING = ("time_text_embed", "emb")  # a part with such a child makes a vector of its own
TABLES = ("scale_shift_table", "modulate_table", "modulation", "to_scale_shift_gate")

PIECE = 1 << 22  # weights that are in fp32 at once

ALREADY = "its modulation is low-rank already; plan on the dense model"
TABLE = "each block adds a table to one modulation vector that is made once: no block has a Linear for it"
ALONE = "only one layer is fed by this vector: there is nothing to share a basis with"


class LowRankLinear(nn.Module):
    """W' (B (e - mu)) + b' in place of a modulation Linear. `basis` B (r, d) and `mean` mu (d,) serve a whole group."""

    def __init__(self, weight_or: Tensor, bias_o: Tensor | None, basis_rd: nn.Parameter, mean_d: nn.Parameter) -> None:
        super().__init__()
        trains = basis_rd.requires_grad
        self.weight = nn.Parameter(weight_or, requires_grad=trains)
        self.bias = None if bias_o is None else nn.Parameter(bias_o, requires_grad=trains)
        self.basis, self.mean = basis_rd, mean_d

    @property
    def out_features(self) -> int:
        """How many outputs it has, of which cutting channels takes some."""
        return len(self.weight)

    def forward(self, e: Tensor) -> Tensor:
        """e (..., d) -> (..., o)."""
        return F.linear(F.linear(e - self.mean, self.basis), self.weight, self.bias)


class Basis(NamedTuple):
    """What stays of a group: rows of B (r, d), orthonormal, and the mean mu (d,)."""

    B_rd: Tensor
    mu_d: Tensor


def directions(name: str, module: nn.Module) -> list[Group]:
    """The groups of modulation layers of a denoiser, each named after its first layer."""
    if not isinstance(module, ModelMixin):
        return []
    prefix = f"{name}." if name else ""
    together: dict[tuple, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, layer, fed_by in _layers(module):
        together[fed_by].append((path, layer))
    groups = []
    for members in together.values():
        path, first = members[0]
        refused = ALREADY if isinstance(first, LowRankLinear) else ""
        if len(members) == 1 and not _in_list(module, path):
            refused = ALONE
        slices = tuple(Slice(f"{prefix}{p}.weight", 1, 0, 1) for p, _ in members)
        groups.append(Group(prefix + path, "modulation", _inputs(first), slices, refused=refused))
    table = next((p for p, _ in module.named_parameters() if p.rpartition(".")[2] in TABLES), None)
    if table and all(group.refused == ALONE for group in groups):
        return [Group(prefix + table, "modulation", 1, (), refused=TABLE)]
    return groups


@torch.no_grad()
@full_fp32()
def mask_directions(root: nn.Module, kept: Mapping[Group, Basis]) -> None:
    """Project every weight of the groups on the directions that stay; a layer without bias needs mu = 0."""
    for group, (B_rd, mu_d) in kept.items():
        for layer in map(root.get_submodule, layers_of(group)):
            W_od = layer.weight.float()
            B, mu = B_rd.to(W_od), mu_d.to(W_od)
            projected_od = W_od @ B.T @ B
            if layer.bias is not None:
                layer.bias.copy_(layer.bias.float() + (W_od - projected_od) @ mu)
            layer.weight.copy_(projected_od)


@torch.no_grad()
@full_fp32()
def cut_directions(root: nn.Module, kept: Mapping[Group, Basis]) -> None:
    """Put a `LowRankLinear` in the place of every layer of the groups; a layer without bias needs mu = 0."""
    for group, (B_rd, mu_d) in kept.items():
        paths = layers_of(group)
        weight = root.get_submodule(paths[0]).weight
        shared = [nn.Parameter(t.to(weight), requires_grad=weight.requires_grad) for t in (B_rd, mu_d)]
        for path in paths:
            layer = root.get_submodule(path)
            W_or = times(layer.weight, B_rd.T)
            b_o = None if layer.bias is None else layer.bias.detach().to(weight, copy=True)
            if b_o is not None and (mu_d.is_meta or mu_d.any()):  # else the bias keeps its bits
                b_o = (layer.bias.float() + times(layer.weight, mu_d[:, None], torch.float32)[:, 0]).to(weight)
            put(root, path, LowRankLinear(W_or, b_o, *shared).train(layer.training))


def times(W_od: Tensor, X_dk: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """W X (o, k), computed in fp32, in W's dtype or another; by some rows at a time: no fp32 copy of W is made."""
    X_dk = X_dk.to(W_od.device, torch.float32)
    return torch.cat([(rows.float() @ X_dk).to(dtype or W_od.dtype) for rows in pieces(W_od)])


def pieces(W_od: Tensor) -> tuple[Tensor, ...]:
    """The rows, as many at a time as hold some millions of weights."""
    return W_od.split(max(1, PIECE // W_od.shape[1]))


def layers_of(group: Group) -> list[str]:
    """Names of the group's layers."""
    return [s.parameter.removesuffix(".weight") for s in group.slices]


def put(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Replace the submodule at `path`, in lists and Sequentials too."""
    owner, _, attribute = path.rpartition(".")
    setattr(root.get_submodule(owner), attribute, layer)


def shared_by(root: nn.Module) -> list[list[str]]:
    """Names of the low-rank layers of a model, one list for each basis."""
    together: dict[int, list[str]] = defaultdict(list)
    for path, layer in root.named_modules():
        if isinstance(layer, LowRankLinear):
            together[id(layer.basis)].append(path)
    return list(together.values())


def _layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module, tuple]]:
    """Path, layer, and what tells by which vector it is fed; denoisers inside this one answer for themselves."""
    modules = dict(denoiser.named_modules())
    for path, layer in modules.items():
        if not isinstance(layer, nn.Linear | LowRankLinear):
            continue
        parts = path.split(".")
        parts_of = [".".join(parts[:i]) for i in range(len(parts))]
        above = [modules[p] for p in parts_of]  # the denoiser first
        activation = _in_front(parts, above[-1])
        if activation is None or any(isinstance(m, ModelMixin) for m in above[1:]):
            continue
        maker = next((p for p, m in zip(parts_of[::-1], above[::-1], strict=True) if _has(m, OWN_EMBEDDING)), "")
        # HunyuanVideo's token replacement calls its norms with a second vector; Kandinsky 6 has one for sound.
        replaces = "TokenReplace" in type(above[-1]).__name__
        sound = "audio" in path or "va_modulation" in path
        yield path, layer, (maker, _inputs(layer), activation, replaces, sound, layer.weight.dtype)


def _in_front(parts: list[str], module: nn.Module) -> str | None:
    """Which activation the modulation layer of this path in `module` has in front; None if it is something else."""
    name, above = parts[-1], parts[-2] if len(parts) > 1 else ""
    if isinstance(module, nn.Sequential):
        if above not in SEQUENTIAL or name != str(len(module) - 1):
            return None
        if len(module) == 1:
            return "none"
        return "silu" if len(module) == 2 and isinstance(module[0], nn.SiLU) else None
    if name in READY:
        return "silu" if above == "final_layer" else name
    if name in RESIDUAL:
        return "silu"
    if above != "adaln_proj" and not any(hasattr(module, a) for a in BESIDE.get(name, ())):
        return None
    if _has(module, NOT_BESIDE):
        return None
    return "silu" if _has(module, ACTIVATIONS) else "none"


def _has(module: nn.Module, names: tuple[str, ...]) -> bool:
    return any(getattr(module, name, None) is not None for name in names)


def _in_list(denoiser: nn.Module, path: str) -> bool:
    parts = path.split(".")
    return any(isinstance(denoiser.get_submodule(".".join(parts[:i])), nn.ModuleList) for i in range(1, len(parts)))


def _inputs(layer: nn.Module) -> int:
    return layer.basis.shape[1] if isinstance(layer, LowRankLinear) else layer.in_features
