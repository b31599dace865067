"""How are Ray actors started, called and stopped, with typed arguments and a deadline for each wait?

`Actor[A].call(A.method, ...)` calls the method in the actor's process and returns a `Pending` of its result, so that
readers and type checkers can follow the arguments into the process. However an actor dies, `wait` raises `ActorDied`.
"""

import contextlib
import inspect
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import ray
from ray.exceptions import (
    GetTimeoutError,
    RayError,
    RayTaskError,
    UnserializableException,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.cluster.address import ClusterError
from rl.cluster.objects import put
from rl.cluster.places import unplaced
from rl.cluster.reserve import Place
from rl.library_output import VARIABLES
from rl.stop import POLL_S, raise_if_requested

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""One thread per process: tiny models run several times slower with two (measured)."""
MEMORY = {"MALLOC_ARENA_MAX": "2", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Of glibc: with an arena for every thread, what engines and environments free is scattered, and processes grow. Of
oneDNN: it keeps code and buffers, 0.6 MiB, for each of the last so many shapes of matrix products. Batches of an engine
have ever new shapes, so with its default of 1,024 an engine grows for thousands of steps. With 64 it makes 6 % more of
them anew than with 256, at 0.4 ms each: in all 2 % of the time of sampling (measured).
"""
LOGGING = {**VARIABLES, "VLLM_CONFIGURE_LOGGING": "0"}
"""vLLM's warnings reach the root logger, and so the run's log, instead of handlers of its own."""
MOST_CALLS = 100_000
"""Of one asynchronous actor at a time."""


class DeadlinePassed(ClusterError):
    """A remote call took longer than its deadline."""


class ActorDied(RuntimeError):
    """An actor's process or its result is lost: the process or its node crashed, or memory ran out."""


class RemoteError(RuntimeError):
    """An error of remote code that cannot be unpickled here; it is told as text."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """The deadline of a wait, and the words for its error. Several waits may share one."""

    seconds: float
    what: str
    """The awaited result, such as `an update`."""
    key: str
    """The configuration key that sets the seconds."""
    started: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        return max(0.0, self.started + self.seconds - time.monotonic())

    def renewed(self) -> "Deadline":
        """The same time again, from now on."""
        return replace(self, started=time.monotonic())


class Pending(Generic[R]):
    """The future result of a remote call."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def as_argument(self) -> R:
        """Stands for the result as an argument of another call, which begins when the result is there."""
        return self._reference  # type: ignore[no-any-return]

    def is_done(self) -> bool:
        """Whether the call has ended, with a result or an error."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def wait(self, deadline: Deadline) -> R:
        """The result. Raises `DeadlinePassed`, `StopRequested` if the run should stop, `ActorDied` if the actor is
        lost, and otherwise the original error of the remote code, or `RemoteError`.
        """
        while True:
            raise_if_requested()
            try:
                return ray.get(self._reference, timeout=min(POLL_S, deadline.left_s))
            except GetTimeoutError:
                if not deadline.left_s:
                    told = f"{deadline.what} took longer than {deadline.seconds:g} s; {deadline.key} sets the deadline"
                    raise DeadlinePassed(told + unplaced()) from None
            except RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except UnserializableException as error:  # the actor lives, and has raised what cannot be sent
                raise RemoteError(str(error)) from None
            except RayError as error:  # dead actors and nodes, lost objects, memory: the caller handles all alike
                raise ActorDied(f"{type(error).__name__}: {error}") from error


def wait_together(pending: Sequence[Pending[Any]], deadline: Deadline, grace_s: float = 60.0) -> None:
    """Wait for calls that work together.

    Raises what `Pending.wait` raises as soon as one call fails: the others may wait for it for ever. Unless an actor
    died, they get `grace_s` seconds to fail too, because the first to tell is seldom the cause, and Ray takes half a
    minute to notice that a node is lost. An actor's death comes first, then an error that is no echo of another one
    (`rl.ranks.PeerFailed`).
    """
    left = {one._reference: one for one in pending}
    errors: list[Exception] = []
    while left and not errors:
        done, _ = ray.wait(list(left), timeout=min(POLL_S, deadline.left_s))
        if not done and not deadline.left_s and len(pending) > 1:
            late = ", ".join(str(number) for number, one in enumerate(pending) if one._reference in left)
            deadline = replace(deadline, what=f"{deadline.what} (no answer from {late} of 0 to {len(pending) - 1})")
        for reference in done or (list(left)[:1] if not deadline.left_s else ()):
            errors += _error_of(left.pop(reference), deadline)
        raise_if_requested()
    if not errors:
        return
    grace = replace(deadline, seconds=grace_s, started=time.monotonic())
    for one in left.values():
        if not any(isinstance(error, ActorDied) for error in errors):
            errors += _error_of(one, grace)
    raise min(errors, key=_distance_from_the_cause)


def _error_of(pending: Pending[Any], deadline: Deadline) -> list[Exception]:
    try:
        pending.wait(deadline)
    except Exception as error:
        return [error]
    return []


def _distance_from_the_cause(error: Exception) -> int:
    if isinstance(error, ActorDied):
        return 0
    if isinstance(error, DeadlinePassed):  # of the grace: this one has only waited for the others
        return 3
    return 2 if getattr(error, "is_echo", False) else 1


class Actor(Generic[A]):
    """A process that holds one object of the class `A`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._is_up = handle.__ray_ready__.remote()

    @overload
    def call(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> Pending[R]: ...
    @overload
    def call(self, method: Callable[Concatenate[A, P], R], *args: P.args, **kwargs: P.kwargs) -> Pending[R]: ...
    def call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Pending[Any]:
        """Start a call of one of the class's methods, which may be asynchronous."""
        return Pending(getattr(self._handle, method.__name__).remote(*args, **kwargs))

    def stop(self, shutdown: Callable[[A], Any], timeout_s: float = 10.0) -> None:
        """Let the object clean up, if it is there already, then end its process."""
        stop_together([self], shutdown, timeout_s)


def stop_together(actors: Sequence[Actor[A]], shutdown: Callable[[A], Any], timeout_s: float = 10.0) -> None:
    """Let the objects that are there clean up, all at the same time, then end their processes."""
    with contextlib.suppress(RayError):
        there = [actor for actor in actors if ray.wait([actor._is_up], timeout=0)[0]]  # others would end constructing
        calls = [getattr(actor._handle, shutdown.__name__).remote() for actor in there]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=timeout_s)
    for actor in actors:
        ray.kill(actor._handle)


def shared(value: T) -> T:
    """An argument for several calls: it is stored once, and each node copies it once. Raises `StoreFull`."""
    return put(value, "the rows of a step")  # type: ignore[return-value]


def start_actor(
    actor_class: Callable[P, A], cpus: float, gpus: float, place: Place | None, /, *args: P.args, **kwargs: P.kwargs
) -> Actor[A]:
    """Start an actor in a process of its own, with one compute thread, in this place or, if it is None, on any node.

    Returns before the process is up.
    """
    remote: Any = ray.remote(actor_class)  # type: ignore[call-overload]
    strategy = PlacementGroupSchedulingStrategy(place.group, place.bundle) if place else "DEFAULT"
    # Ray runs 1,000 calls of an asynchronous actor at a time; signs of life would wait behind as many groups.
    is_asynchronous = any(inspect.iscoroutinefunction(one) for one in vars(actor_class).values())
    options = remote.options(
        **({"max_concurrency": MOST_CALLS} if is_asynchronous else {}),
        num_cpus=cpus,
        num_gpus=gpus,
        scheduling_strategy=strategy,
        runtime_env={"env_vars": {**THREADS, **MEMORY, **LOGGING}},
        enable_task_events=False,  # Ray's control service would keep a record of each call: 20 MiB in 1,000 steps
    )
    return Actor(options.remote(*args, **kwargs))
