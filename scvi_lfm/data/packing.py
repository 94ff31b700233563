"""What travels to the workers of a cluster, as bytes: functions with what they know, and no tensor twice."""

from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def pickled(what: Any, shared: Sequence[torch.Tensor] = ()) -> bytes:
    """Bytes of anything, functions inside functions too; of tensors that are `shared`, their numbers among these."""
    numbers = {id(tensor): number for number, tensor in enumerate(shared)}
    return _packed(what, lambda tensor: numbers.get(id(tensor)))


def outlined(what: Any) -> tuple[bytes, tuple[torch.Tensor, ...]]:
    """Bytes of anything with numbers for its tensors, and these tensors."""
    numbers: dict[int, int] = {}
    tensors: list[torch.Tensor] = []

    def number_of(tensor: torch.Tensor) -> int:
        if id(tensor) not in numbers:
            numbers[id(tensor)] = len(tensors)
            tensors.append(tensor)
        return numbers[id(tensor)]

    return _packed(what, number_of), tuple(tensors)


def _packed(what: Any, number_of: Callable[[torch.Tensor], int | None]) -> bytes:
    """Bytes of anything; of tensors that have a number, the number."""
    import cloudpickle

    class Packer(cloudpickle.Pickler):
        def persistent_id(self, thing: Any) -> int | None:
            return number_of(thing) if _is_plain(thing) else None

        def reducer_override(self, thing: Any) -> Any:
            if _is_plain(thing):
                # as torch has it, a row of a tensor would bring the whole tensor along
                return torch.from_numpy, (np.array(thing.detach().numpy(), order="C"),)
            return super().reducer_override(thing)

    with io.BytesIO() as file:
        Packer(file, protocol=5).dump(what)
        return file.getvalue()


def _is_plain(thing: Any) -> bool:
    return type(thing) is torch.Tensor and thing.layout == torch.strided


def unpickled(packed: bytes, tensors: Sequence[torch.Tensor]) -> Any:
    """What was pickled, with the tensors that it has numbers for."""

    class Unpacker(pickle.Unpickler):
        def persistent_load(self, number: int) -> torch.Tensor:
            return tensors[number]

    with io.BytesIO(packed) as file:
        return Unpacker(file).load()
