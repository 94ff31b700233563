"""A device that computes nothing: what a GPU would wait for, and what would be copied to it, without a GPU.

On torch's device `meta` tensors have a shape, a dtype and no values. Inside :func:`watched` every operation on them
runs by its shapes, and what makes a GPU and the host wait for each other is written down with the place in the
package that asked for it. What reads values gets made-up ones: True, ones, every entry.
"""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import scvi_lfm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

META = torch.device("meta")
PACKAGE = Path(scvi_lfm.__file__).parent
aten = torch.ops.aten


@dataclass(frozen=True)
class Event:
    """One time that the host waits for the device."""

    kind: str  # "read": of values on the device; "copy": to the device; "check": torch asks whether LAPACK succeeded
    place: str  # file and function of the package
    shape: tuple[int, ...]  # of what is read or copied

    @property
    def width(self) -> int:
        """Length of the longest axis."""
        return max(self.shape, default=1)


class Watch(list[Event]):
    """What was seen, in order."""

    def note(self, kind: str, shape: tuple[int, ...]) -> None:
        """Write down an event with its place."""
        self.append(Event(kind, _place(), tuple(shape)))

    def of(self, *kinds: str) -> dict[str, set[int]]:
        """Lengths of the longest axes by place."""
        found: dict[str, set[int]] = {}
        for event in self:
            if event.kind in kinds:
                found.setdefault(event.place, set()).add(event.width)
        return found


@contextmanager
def watched() -> Iterator[Watch]:
    """Run operations on `meta` by their shapes, and note what a GPU would wait for."""
    watch = Watch()
    with _Shapes(watch), _Sources(watch):
        yield watch


def _place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}: {frame.f_code.co_qualname}"
        frame = frame.f_back
    return "the test"


def _on_meta(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


class _Sources(TorchFunctionMode):
    """Tensors made from values of the host, which no operation on `meta` shows."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: Any = None) -> Any:
        name, before = getattr(function, "__name__", ""), len(self._watch)
        result = function(*args, **(kwargs or {}))
        if name in {"tensor", "as_tensor", "new_tensor", "asarray"} and _on_meta(result):
            source = args[1] if name == "new_tensor" else args[0]
            if not _on_meta(source):
                del self._watch[before:]
                self._watch.note("copy", tuple(result.shape))
        if name in {"__getitem__", "__setitem__"} and _on_meta(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            for part in index:
                if isinstance(part, list | np.ndarray):
                    self._watch.note("copy", np.shape(part))
        return result


class _Shapes(TorchDispatchMode):
    """Operations by their shapes."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, function: Any, types: object, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [part for part in pytree.tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        packet = function.overloadpacket
        if packet in {aten._to_copy, aten.copy_}:
            return self._copied(function, args, kwargs)
        if not any(map(_on_meta, tensors)):
            return function(*args, **kwargs)
        if packet in _CHECKS:
            self._watch.note("check", tuple(tensors[0].shape[:-2]))
        if packet in {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}:
            return self._indexed(function, args, kwargs)
        # numbers without an axis may come from the host
        left = [part for part in tensors if not part.is_meta and part.ndim]
        if left:
            msg = f"{_place()}: {function} of tensors on the device with one of shape {tuple(left[0].shape)} on the CPU"
            raise RuntimeError(msg)
        if packet in _READS:
            self._watch.note("read", tuple(tensors[0].shape))
            return _READS[packet](*args, **kwargs)
        plain = all(part.dtype.is_floating_point and part.layout == torch.strided for part in tensors)
        if (
            packet in _POINTWISE
            and plain
            and not kwargs.keys() - {"alpha", "value"}
            and isinstance(args[0], torch.Tensor)
        ):
            return _pointwise(args[0], tensors, in_place=packet.__name__.endswith("_"), tells=packet in _COMPARES)
        if packet is aten.linalg_lstsq:
            return args[1].new_empty(args[0].shape[1], args[1].shape[1]), *(args[1].new_empty(0) for _ in range(3))
        if packet in _MISSING and any(part.layout != torch.strided for part in tensors):
            return _MISSING[packet](*args, **kwargs)
        return function(*args, **kwargs)

    def _copied(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if function.overloadpacket is aten.copy_:
            to, source = args[:2]
            if to.is_meta and not source.is_meta and source.ndim:
                self._watch.note("copy", tuple(source.shape))
            if not to.is_meta and source.is_meta:
                self._watch.note("read", tuple(source.shape))
                return to.fill_(1)
            return function(*args, **kwargs)
        source, device = args[0], kwargs.get("device")
        if device is not None and source.is_meta and device != META:
            self._watch.note("read", tuple(source.shape))
            return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)
        if device == META and not source.is_meta:
            self._watch.note("copy", tuple(source.shape))
        return function(*args, **kwargs)

    def _indexed(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """With a mask, which a GPU must count first, standing for every entry."""
        of, indices, *rest = args
        full = []
        for index in indices:
            if index is None or index.is_meta or not index.ndim:
                pass
            else:
                self._watch.note("copy", tuple(index.shape))
                index = index.to(META)
            if index is not None and index.dtype == torch.bool:
                self._watch.note("read", tuple(index.shape))
                full += [index.new_empty(index.numel(), dtype=torch.int64)] * index.ndim
            else:
                full.append(index)
        return function(of, full, *rest, **kwargs)


def _number(of: torch.Tensor) -> bool | int | float:
    return True if of.dtype == torch.bool else 1.0 if of.dtype.is_floating_point else 1


def _every_place(of: torch.Tensor) -> torch.Tensor:
    return of.new_empty(of.numel(), of.ndim, dtype=torch.int64)


def _all_different(of: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, ...]:
    places = of.new_empty(of.shape, dtype=torch.int64)
    return of.new_empty(of.numel()), places, places.flatten()


def _pointwise(first: torch.Tensor, tensors: list[torch.Tensor], *, in_place: bool, tells: bool) -> torch.Tensor:
    """Much faster than by the operation's own rules."""
    shape = torch.broadcast_shapes(*(part.shape for part in tensors))
    if in_place:
        assert shape == first.shape, f"{_place()}: {tuple(first.shape)} cannot hold {tuple(shape)}"
        return first
    if tells:
        return torch.empty(shape, dtype=torch.bool, device=META)
    telling = [part.dtype for part in tensors if part.ndim] or [part.dtype for part in tensors]
    return torch.empty(shape, dtype=functools.reduce(torch.promote_types, telling), device=META)


_NAMES = "add sub mul div neg reciprocal addcmul clamp clamp_min clamp_max exp expm1 log log1p sqrt pow erfc digamma"
_COMPARES = {aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge}
_POINTWISE = _COMPARES | {getattr(aten, name + end) for name in _NAMES.split() for end in ("", "_")}
# reads of values, and what they give
_READS = {
    aten._local_scalar_dense: _number,
    aten.nonzero: _every_place,
    aten.masked_select: lambda of, mask: of.new_empty(of.numel()),
    aten.equal: lambda one, other: False,
    aten.bincount: lambda places, weights=None, minlength=0: places.new_empty(minlength, dtype=torch.int64),
    aten._unique2: _all_different,
    aten.unique_consecutive: _all_different,
}
# torch asks a GPU whether these succeeded; eigenvalues are checked inside
_CHECKS = {aten._linalg_check_errors, aten._linalg_eigh, aten.linalg_lstsq}
# products of sparse matrices, which `meta` lacks
_MISSING = {
    aten.mm: lambda a, b: b.new_empty(a.shape[0], b.shape[1], layout=torch.strided),
    aten.addmm: lambda c, a, b, beta=1, alpha=1, out=None: b.new_empty(a.shape[0], b.shape[1]) if out is None else out,
    aten.sparse_sampled_addmm: lambda c, a, b, beta=1, alpha=1: c,
    aten._to_dense: lambda a, dtype=None, masked_grad=None: torch.empty(a.shape, dtype=a.dtype, device=META),
}
