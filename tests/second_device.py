"""A second device without hardware: its tensors lie in the CPU's memory, but do not mix with those of the CPU.

A GPU refuses to add a tensor of its own to one of the CPU. On a machine without one, code that forgets to move a tensor
passes every test. Within `second_device()` there is a device `elsewhere` that refuses the same and computes with the
CPU's kernels, so that results must be those of the CPU. Of attention it knows the plain formula only.

Not to be had here: kernels of its own, streams, memory statistics, a generator, `torch.compile`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
aten = torch.ops.aten
LIBRARY = torch.library.Library("aten", "IMPL")
INDEXING = (aten.index.Tensor, aten.index_put_.default)  # whole numbers of the CPU may index any device


class Elsewhere(Tensor):
    """A tensor of the second device around one of the CPU."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        layout = here.size(), here.stride(), here.storage_offset()
        made = Tensor._make_wrapper_subclass(cls, *layout, dtype=here.dtype, device=f"{NAME}:0")
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> "Elsewhere":
        memo[id(self)] = made = Elsewhere(self.here.clone()).requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)
        return made

    def __reduce_ex__(self, protocol: int) -> tuple:  # a check point holds numbers, not where they lay
        return self.here.__reduce_ex__(protocol)

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "Elsewhere") -> None:
        Tensor.data.__set__(self, value)
        self.here = value.here

    def data_ptr(self) -> int:  # by this and the next two, what is saved tells shared memory
        return self.here.data_ptr()

    def storage(self) -> torch.TypedStorage:
        return self.here.storage()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.here.untyped_storage()


class Moves(TorchDispatchMode):
    """Sees what is made on the second device out of nothing, or out of tensors of the CPU."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return run(op, args, kwargs or {})


def run(op, args: tuple, kwargs: dict):
    """Compute here; what comes out lies where it was asked for, or else where the arguments lie."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    away = [x for x in tensors if isinstance(x, Elsewhere)]
    if op is aten._has_compatible_shallow_copy_type.default:
        return len(away) in (0, 2)
    if away and op not in (aten.copy_.default, aten._to_copy.default):  # these move
        others = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
        if others and not (op in INDEXING and not any(x.is_floating_point() for x in others)):
            raise RuntimeError(f"{op}: expected all tensors to be on the same device, but found {NAME} and cpu")
    asked = kwargs.get("device")
    goes_away = torch.device(asked).type == NAME if asked is not None else bool(away)
    of_here = {id(x.here): x for x in away}
    args, kwargs = tree_map(lambda x: x.here if isinstance(x, Elsewhere) else x, (args, kwargs))
    if asked is not None and goes_away:
        kwargs["device"] = torch.device("cpu")

    def wrap(x: object) -> object:
        if not isinstance(x, Tensor) or not goes_away:
            return x
        return of_here[id(x)] if id(x) in of_here else Elsewhere(x)  # what is changed in place is itself again

    return tree_map(wrap, op(*args, **kwargs))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None) -> Elsewhere:
    """What autograd asks for behind the back of the mode."""
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(x: Tensor, out: Tensor, non_blocking: bool = False) -> Tensor:
    here_x, here_out = (t.here if isinstance(t, Elsewhere) else t for t in (x, out))
    here_out.copy_(here_x)
    return out


class _Module:
    """What torch asks the module of a device for."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])


@contextmanager
def second_device() -> Iterator[str]:
    """The name of the device, which works within; the CPU, too, computes attention by the plain formula there."""
    if torch._C._get_privateuse1_backend_name() != NAME:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
        LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
    AcceleratorState._reset_state(True)
    with (
        sdpa_kernel([SDPBackend.MATH]),
        patch.object(PartialState, "default_device", property(lambda state: torch.device(NAME))),
        # the engine takes weights that are a class of their own for quantised ones
        patch("reference.models.packed_weight", lambda model: None),
        patch("reference.checkpoint.packed_weight", lambda model: None),
        Moves(),
    ):
        yield NAME
    AcceleratorState._reset_state(True)
