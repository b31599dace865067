"""How do the processes of one learner, its ranks, agree with each other?

They sum, compare and gather over a process group. A learner of one process has none: what it computes is the result.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


class PeerFailed(RuntimeError):
    """Another rank met an error, so this one stopped too."""

    is_echo = True
    """`rl.cluster.actors.wait_together` prefers the error itself."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One rank's view of all ranks. Every rank must call the same methods in the same order."""

    rank: int = 0
    num: int = 1
    mesh: "DeviceMesh | None" = None
    """All ranks along one axis; None in a learner of one process."""
    expert_mesh: "DeviceMesh | None" = None
    """With expert parallelism the same ranks along two axes: `efsdp`, over which an expert's weights are sliced, and
    `ep`, over which the experts of a layer are dealt."""

    @property
    def is_first(self) -> bool:
        """The first rank does what is to be done once: it publishes, and writes the policy's folder."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Replaced by the sum over ranks, in place."""
        if self.num > 1:
            dist.all_reduce(values, dist.ReduceOp.SUM)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Replaced by the largest of all ranks, in place."""
        if self.num > 1:
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return values

    def gather(self, value: T) -> Sequence[T]:
        """The values of all ranks, in their order. For small objects: they are pickled."""
        if self.num == 1:
            return (value,)
        values: list[T | None] = [None] * self.num
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, value: T | None) -> T:
        """The first rank's value on all ranks. It is pickled."""
        values = [value]
        if self.num > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]  # type: ignore[return-value]

    def tells(self, error: BaseException) -> bool:
        """Whether this rank should tell the error that ends it: no rank that failed before has told its own."""
        if self.num == 1 or getattr(error, "is_echo", False):
            return self.num == 1
        try:
            return dist.distributed_c10d._get_default_store().add("failed", 1) == 1
        except RuntimeError:  # the first rank, which keeps the store, has failed
            return False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """If the block raises on one rank, it raises on all: the error itself there, and `PeerFailed` elsewhere.

        A rank that raised alone would leave the others waiting for it in the next exchange. The block itself must not
        exchange anything.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            if self.num == 1:
                raise
            error = caught
        told = self.gather(None if error is None else f"rank {self.rank}: {type(error).__name__}: {error}")
        if error is not None:
            raise error
        if failed := [text for text in told if text]:
            raise PeerFailed(failed[0])


ALONE = Ranks()
"""The ranks of a learner of one process."""


def join_ranks(
    rank: int, num: int, address: str, device: torch.device, timeout_s: float, expert_parallel: int = 1
) -> Ranks:
    """Join the process group of `num` ranks. `address` is host:port on the machine of rank 0; all ranks give the same.

    `expert_parallel` ranks share the experts of a layer; it divides `num`. Returns when all have joined; a rank that
    waits for another one longer than `timeout_s` seconds raises `torch.distributed.DistError`. The variables
    GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network device.
    """
    if num == 1:
        return ALONE
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{address}",
        rank=rank,
        world_size=num,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    if expert_parallel == 1:
        return Ranks(rank, num, init_device_mesh(device.type, (num,), mesh_dim_names=("ranks",)))
    shape = (num // expert_parallel, expert_parallel)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("efsdp", "ep"))
    return Ranks(rank, num, mesh._flatten("ranks"), mesh)


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a tensor that is spread over ranks, or the whole tensor; without gradient, in its memory."""
    detached = tensor.detach()
    return detached.to_local().detach() if isinstance(detached, DTensor) else detached


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over ranks; all ranks must call it."""
    detached = tensor.detach()
    return detached.full_tensor() if isinstance(detached, DTensor) else detached


def leave_ranks() -> None:
    """Leave the process group, if this process has joined one."""
    if dist.is_initialized():
        dist.destroy_process_group()
