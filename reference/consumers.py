"""Consumers: the layers that read a group's units, where data criteria watch what the units put out."""

from typing import NamedTuple

from torch import Tensor, nn

from reference.anatomy.groups import Group
from reference.errors import NotPrunable


class Consumer(NamedTuple):
    """Unit u is `width` inputs of the layer from start + u * width on, flat as in `criteria/layer_inputs.py`.

    A convolution has `kernel` flat inputs a channel, a Linear one.
    """

    name: str
    layer: nn.Module
    start: int
    width: int
    kernel: int

    def of(self, inputs: Tensor, count: int) -> Tensor:
        """The part of the last dimension that belongs to the group's `count` units."""
        return inputs[..., self.start : self.start + count * self.width]


def consumers(root: nn.Module, group: Group) -> list[Consumer]:
    """The layers whose columns belong to the group's units; several for the streams of a joint attention."""
    found = []
    for s in (s for s in group.slices if s.dim == 1 and s.masked):
        name = s.parameter.removesuffix(".weight")
        layer = root.get_submodule(name) if s.parameter.endswith(".weight") else None
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            raise NotPrunable(
                f"{s.parameter} belongs to no Linear or convolution, so its inputs cannot be watched; "
                f"leave these units out with skip={group.name!r}, or use a criterion that looks at weights"
            )
        kernel = layer.weight[0, 0].numel()
        found.append(Consumer(name, layer, s.start * kernel, s.width * kernel, kernel))
    return found
