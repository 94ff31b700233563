"""Records of tensors as a tree of plain values and a list of arrays, and back, to the bit; nothing is pickled."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..model import PriorScales
from ..posterior.held_out import Score
from .counts.engine import State as CountState
from .counts.state import Cells, CountGlobals, CountStatistics
from .counts.variable import LeftOut
from .course import Course, Draws, Place
from .normal.paired_steps import NormalSums
from .normal.state import NormalGlobals, NormalStatistics, WeightedStatistics
from .normal.sweep import Step
from .observed.engine import State as ObservedState
from .observed.state import ObservedGlobals, ObservedStatistics
from .ranks import RankCurve
from .trace import Trace

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# a new record of a state is written down by a line here
RECORDS: dict[str, type] = {
    "Cells": Cells,
    "CountGlobals": CountGlobals,
    "CountState": CountState,
    "CountStatistics": CountStatistics,
    "Course": Course,
    "Draws": Draws,
    "NormalGlobals": NormalGlobals,
    "NormalStatistics": NormalStatistics,
    "NormalStep": Step,
    "NormalSums": NormalSums,
    "ObservedGlobals": ObservedGlobals,
    "ObservedState": ObservedState,
    "ObservedStatistics": ObservedStatistics,
    "Place": Place,
    "PriorScales": PriorScales,
    "RankCurve": RankCurve,
    "LeftOut": LeftOut,
    "Score": Score,
    "Trace": Trace,
    "WeightedStatistics": WeightedStatistics,
}
NAMES = {record: name for name, record in RECORDS.items()}
KIND = "kind"
SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "frozenset": frozenset}
# bytes to which memory is aligned: sums are done in another order from elsewhere
ALIGNED = 64


def encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON has it; its tensors go to the end of `arrays`."""
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if isinstance(value, torch.Tensor):
        return _encode_tensor(value, arrays)
    if is_dataclass(value) and type(value) in NAMES:
        parts = {each.name: encode(getattr(value, each.name), arrays) for each in fields(value)}
        return {KIND: NAMES[type(value)], "fields": parts}
    if type(value) is dict:
        return {KIND: "dict", "items": {key: encode(item, arrays) for key, item in value.items()}}
    name = type(value).__name__
    if not isinstance(value, list | tuple | frozenset):
        msg = f"{name} is no record of a fit's state."
        raise TypeError(msg)
    items = sorted(value) if isinstance(value, frozenset) else value
    return {KIND: name, "items": [encode(item, arrays) for item in items]}


def decode(tree: Any, arrays: list[np.ndarray], device: torch.device) -> Any:
    """Value that was encoded, its tensors on a device."""
    if not isinstance(tree, dict):
        return tree
    kind = tree[KIND]
    if kind == "scalar":
        return torch.tensor(tree["value"], dtype=getattr(torch, tree["dtype"]), device=device)
    if kind == "tensor":
        return _decode_tensor(tree, arrays, device)
    if kind == "dict":
        return {key: decode(item, arrays, device) for key, item in tree["items"].items()}
    if kind in SEQUENCES:
        return SEQUENCES[kind](decode(item, arrays, device) for item in tree["items"])
    return RECORDS[kind](**{name: decode(part, arrays, device) for name, part in tree["fields"].items()})


def _encode_tensor(tensor: Tensor, arrays: list[np.ndarray]) -> dict[str, Any]:
    """A tensor with how it lies in memory, which steps and the libraries below them go by."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.ndim == 0:
        return {KIND: "scalar", "value": tensor.item(), "dtype": dtype}
    where = tensor.data_ptr() % ALIGNED // tensor.element_size() if tensor.device.type == "cpu" else 0
    arrays.append(tensor[_once(tensor.stride())].detach().cpu().contiguous().numpy())
    return {
        KIND: "tensor",
        "array": len(arrays) - 1,
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "from": where,
        "device": tensor.device.type,
    }


def _decode_tensor(tree: dict[str, Any], arrays: list[np.ndarray], device: torch.device) -> Tensor:
    values, shape, stride, first = torch.from_numpy(arrays[tree["array"]]), tree["shape"], tree["stride"], tree["from"]
    # the prior scales of covariates, where there are none, are on the CPU whatever the device
    device = device if tree["device"] == device.type else torch.device(tree["device"])
    reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if 0 not in shape else 0
    memory = torch.empty(first + reach + 1, dtype=values.dtype, device=device)
    tensor = memory.as_strided(shape, stride, first)
    tensor[_once(stride)] = values.to(device)
    return tensor


def _once(stride: list[int] | tuple[int, ...]) -> tuple[slice, ...]:
    """The part of a tensor without what repeats it."""
    return tuple(slice(None) if step else slice(0, 1) for step in stride)
