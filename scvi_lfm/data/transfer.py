"""Values on their way to a GPU: read by a thread of the host, and copied on a stream of their own while it computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from .._workers import one_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

Item = TypeVar("Item")

# torch keeps what it has pinned: what is larger than an array of a minibatch is copied once, from where it is
MOST_BYTES_PINNED = 2**29


class Block(Protocol):
    """What has values to be worked on."""

    def send(self) -> list[Tensor]:
        """Have them on the device, and tell where they lie there."""


Read = TypeVar("Read", bound=Block)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """An array on the device, shared on the CPU; a GPU copies it from pinned memory, for which nobody waits."""
    # nothing writes to values, so sharing a read-only array with torch is safe
    tensor = torch.from_numpy(np.require(array, requirements="W"))
    if device.type != "cuda" or tensor.nbytes > MOST_BYTES_PINNED:
        return tensor.to(device)
    # the pinned copy is given to nobody else before the GPU has it
    return tensor.pin_memory().to(device, non_blocking=True)


class Lane:
    """A stream of copies to a GPU, beside the one on which it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._copies = device, torch.cuda.Stream(device)

    def send(self, block: Callable[[], Read]) -> Callable[[], Read]:
        """Read a block and begin to copy it; the result gives it to what is computed afterwards."""
        with torch.cuda.stream(self._copies):
            sent = block()
            tensors, copied = sent.send(), self._copies.record_event()

        def received() -> Read:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            for tensor in tensors:
                # else their memory would be free for the next copy before all that was asked of them is computed
                tensor.record_stream(computing)
            return sent

        return received


def lane_to(device: torch.device) -> Lane | None:
    """A lane to a GPU; None to what shares the host's memory."""
    return Lane(device) if device.type == "cuda" else None


def sent_ahead(read: Callable[[Item], Read], items: Iterable[Item], device: torch.device) -> Iterator[Read]:
    """`read` of each item, in their order, each read, and copied to a GPU, while the one before is worked on."""
    lane = lane_to(device)
    if lane is None:
        return one_ahead(read, items)
    sent = one_ahead(lambda item: lane.send(lambda: read(item)), items, own_thread=True)
    return (received() for received in sent)
