"""Which environments are installed, and how is one made from its id?

An environment is announced by an entry point of the group `polygym.envs`. The entry point's name is the environment's
id, such as `math/Arithmetic-v0`; its value is the class. Listing reads package metadata only: an environment is not
imported before it is made. `module:Class` instead of an id makes a class that no package announces.
"""

import contextlib
import difflib
import functools
import importlib.util
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from envs.errors import InputError, named, place_of
from envs.event_loop import settle
from envs.results import ResultError, check_attributes
from envs.scored import is_undecorated
from envs.text_env import TextEnv
from envs.tool_class import ToolClassEnv, is_tool_class

GROUP = "polygym.envs"


class UnknownEnvironmentError(InputError):
    """No installed package announces this environment."""


class EnvironmentPluginError(InputError):
    """A package announces an environment that cannot be used: a duplicate id, a failed import, not an environment."""


@dataclass(frozen=True, slots=True)
class Announced:
    """One entry point of an environment. `problem` says why it cannot be used, as far as is visible from outside."""

    env_id: str
    package: str
    target: str
    problem: str


def announcements() -> list[Announced]:
    """Every announced environment with package and version, sorted, without importing any of them."""
    found = []
    for env_id, sources in sorted(announced().items()):
        for point, distribution in sources:
            others = " and ".join(other.name for _, other in sources if other is not distribution)
            problem = f"{others} announces the same id" if others else _missing_module(point)
            found.append(Announced(env_id, f"{distribution.name} {distribution.version}", point.value, problem))
    return found


def _missing_module(point: EntryPoint) -> str:
    top = point.module.partition(".")[0]
    return "" if importlib.util.find_spec(top) else f"there is no module {top}"


def environment_ids() -> tuple[str, ...]:
    """The ids of all announced environments, sorted, without importing any of them."""
    return tuple(sorted(announced()))


def make(env_id: str) -> TextEnv:
    """A new environment for an announced id or for `module:Class`.

    Raises `UnknownEnvironmentError` naming the nearest ids, `EnvironmentPluginError` naming the package and the error.
    """
    factory, what = factory_of(env_id)
    try:
        env = factory()
    except Exception as error:
        raise EnvironmentPluginError(f"{what} cannot be made: {named(error)}{place_of(error)}") from error
    if not isinstance(env, TextEnv):
        kind = type(env).__name__
        raise EnvironmentPluginError(f"{what} is not a TextEnv but a {kind}, and not a class with reset and score")
    try:
        check_attributes(env)
    except BaseException as error:
        with contextlib.suppress(BaseException):  # what it opened must not stay open; errors are ignored
            settle(env.close())
        if not isinstance(error, ResultError):
            raise
        raise EnvironmentPluginError(f"{what}: {error}") from error
    return env


def is_built_in(env_id: str) -> bool:
    """Whether the environment's code is polygym's own."""
    targets = [env_id] if ":" in env_id else [point.value for point, _ in announced().get(env_id, [])]
    return bool(targets) and all(target.startswith("envs.") for target in targets)


@functools.cache
def factory_of(env_id: str) -> tuple[Callable[[], Any], str]:
    """The factory of this environment, and its name in errors. Cached, since every rollout makes an environment.

    Raises the same errors as `make`.
    """
    if ":" in env_id:
        point, what = EntryPoint(env_id, env_id, GROUP), f"environment {env_id}"
    else:
        point, distribution = find(env_id)
        what = f"environment {env_id} of package {distribution.name} {distribution.version} ({point.value})"
    try:
        found = point.load()
    except Exception as error:
        raise EnvironmentPluginError(f"{what} cannot be imported: {named(error)}") from error
    if is_undecorated(found):
        raise EnvironmentPluginError(f"{what} is a plain function; decorate it with @scored(rows=...) of envs.scored")
    is_plain = is_tool_class(found) and not issubclass(found, TextEnv)
    return (functools.partial(ToolClassEnv, found) if is_plain else found), what


def whole_name(env_id: str) -> str:
    """Package, version and class of an environment, for display."""
    if ":" in env_id:
        return env_id
    point, distribution = find(env_id)
    return f"{distribution.name} {distribution.version} ({point.value})"


def environment_version(env_id: str) -> str:
    """Name and version of the package that the environment comes from, for run records, such as `polygym 0.1.0`.

    For `module:Class` it is the top module's `__version__`, if there is one.
    """
    if ":" in env_id:
        top = env_id.partition(":")[0].partition(".")[0]
        return f"{top} {getattr(importlib.import_module(top), '__version__', 'unversioned')}"
    _, distribution = find(env_id)
    return f"{distribution.name} {distribution.version}"


def find(env_id: str) -> tuple[EntryPoint, Distribution]:
    """The one entry point of this id. Raises the same errors as `make`."""
    sources = announced().get(env_id, [])
    if not sources:
        raise UnknownEnvironmentError(unknown_message(env_id))
    if len(sources) > 1:
        names = " and ".join(f"{distribution.name} ({point.value})" for point, distribution in sources)
        raise EnvironmentPluginError(f"environment {env_id} is announced twice, by {names}; uninstall or rename one")
    return sources[0]


@functools.cache
def announced() -> dict[str, list[tuple[EntryPoint, Distribution]]]:
    """Entry points by id, read once per process: this takes about 50 ms, and every rollout makes an environment.

    Of a package that is found twice on the path, only the first counts, which is also the one that would be imported.
    """
    found: dict[str, list[tuple[EntryPoint, Distribution]]] = defaultdict(list)
    seen: set[str] = set()
    for distribution in distributions():
        name = (distribution.name or "").lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        for point in distribution.entry_points:
            if point.group == GROUP:
                found[point.name].append((point, distribution))
    return dict(found)


def unknown_message(env_id: str) -> str:
    known = environment_ids()
    near = difflib.get_close_matches(env_id, known, n=3, cutoff=0.4)
    guess = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return f"no environment {env_id!r}; {guess} An unannounced class is named as module:Class"
