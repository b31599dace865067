"""How is an environment played from synchronous code? Its calls have deadlines, and its results are checked.

Every failure is raised as an `EnvFailure`. The trainer's counterpart, which uses the trainer's threads and loop, is
`rl.rollouts.env_session`. Both share the definition of a valid result (`envs.results`), the text of a failure
(`raised`), and the code that closes an environment exactly once (`Opened`).
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.errors import FAILED, error_text, exit_code, is_ours, named, place_of
from envs.event_loop import DeadlineError, call_within
from envs.messages import Message, Reply
from envs.options_text import options_text
from envs.registry import EnvironmentPluginError, UnknownEnvironmentError, make
from envs.results import (
    ResultError,
    check_attributes,
    check_opened,
    check_total,
    read_gold,
    read_opening,
    read_scores,
    read_step,
)
from envs.text_env import StepResult, TextEnv


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Maximum duration of one call, in seconds. Training has its own (`rollout.reset_timeout_s`, `step_timeout_s`)."""

    reset_s: float = 120.0
    """Includes making the environment."""
    step_s: float = 120.0
    """Also applies to a gold reply and to `score_group`."""


class EnvFailure(RuntimeError):
    """An environment failed, and the rollout cannot continue. The policy never causes this."""

    def __init__(
        self, where: str, reason: str, *, phase: str = "", error: BaseException | None = None, timed_out: bool = False
    ) -> None:
        """`where` is environment, seed and split; `phase` is the call that raised, if one did."""
        what = f"{phase} raised {reason}" if phase else reason
        super().__init__(f"{where}: {what}" if where else what)
        self.where, self.phase, self.reason = where, phase, reason
        self.error = error
        """The exception of its code; None if it returned a wrong result or took too long."""
        self.outcome = "env_timeout" if timed_out else "env_error"
        self.exit_code = exit_code(error) if error is not None else FAILED


class Opened:
    """The environment of one rollout, which is closed exactly once, even if it is made late.

    A constructor may exceed its deadline. The code that finds that nobody is waiting any more closes the environment.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._env: TextEnv | None = None
        self._is_over = False

    def put(self, env: TextEnv) -> bool:
        """False if the rollout is already over; the caller must then close the environment."""
        with self._lock:
            if not self._is_over:
                self._env = env
            return not self._is_over

    def end(self) -> TextEnv | None:
        """The environment to close, at the first call; None at later calls, or if none has been made yet."""
        with self._lock:
            env, self._env, self._is_over = self._env, None, True
            return env


class Session:
    """One environment instance; each `reset` begins a rollout. Use it in a `with`, which closes it.

    All methods raise `EnvFailure`.
    """

    def __init__(
        self,
        make_env: Callable[[], TextEnv],
        name: str,
        deadlines: Deadlines | None = None,
        seconds: dict[str, list[float]] | None = None,
    ) -> None:
        """`seconds` collects, by phase (`reset`, `step`), the duration of each call that returned."""
        self._make, self._name = make_env, name
        self._seconds = seconds if seconds is not None else {}
        self._where = name
        self._deadlines = deadlines or Deadlines()
        self._opened = Opened()
        self._env: TextEnv | None = None
        self.reward = 0.0
        """The sum since `reset`."""
        self.parts: dict[str, float] | None = None
        """None until a step names parts."""

    @classmethod
    def installed(cls, env_id: str, deadlines: Deadlines | None = None) -> "Session":
        """A session of an installed environment."""
        return cls(lambda: make(env_id), env_id, deadlines)

    @classmethod
    def of(cls, env: TextEnv, deadlines: Deadlines | None = None) -> "Session":
        """A session of an environment that the caller made and closes."""
        return cls(lambda: env, type(getattr(env, "inner", env)).__name__, deadlines)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def env(self) -> TextEnv:
        """The environment, made when it is first needed."""
        if self._env is None:
            self._env = self._called("", self._made, self._deadlines.reset_s)
        assert self._env is not None
        return self._env

    def reset(self, seed: int, options: Mapping[str, Any]) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """Opening messages and info of a task; `options` also contain the split."""
        self._where = f"{self._name} (seed {seed}, split {options.get('split', 'train')})"
        env, self.reward, self.parts = self.env, 0.0, None
        try:
            given = self._called("reset", lambda: env.reset(seed=seed, options=dict(options)), self._deadlines.reset_s)
        except EnvFailure as failure:
            raise EnvFailure(
                failure.where,
                failure.reason + options_text(env, options, failure.error),
                phase=failure.phase,
                error=failure.error,
                timed_out=failure.outcome == "env_timeout",
            ) from failure.error
        opening, info = self._read(lambda: read_opening(given))
        self._read(lambda: check_opened(env))
        return opening, info

    def read_options(self, options: Mapping[str, Any]) -> None:
        """Raises `EnvFailure` with an `EnvironmentOptionError` as `error` for options that the environment rejects."""
        env = self.env
        self._called("read_options", lambda: env.read_options(dict(options)), self._deadlines.reset_s)

    def step(self, reply: Reply) -> StepResult:
        """Play one reply. Accumulates reward and parts, and checks the total when the rollout is over."""
        env = self.env
        given = self._called("step", lambda: env.step(reply), self._deadlines.step_s)
        result = self._read(lambda: read_step(given))
        self.reward += result[1]
        if "reward_parts" in result[4]:
            self.parts = (self.parts or {}) | result[4]["reward_parts"]
        if result[2] or result[3]:
            self.check_total(self.reward)
        return result

    def check_total(self, total: float) -> None:
        """Raises if the total of a rollout is outside its declared range."""
        self._read(lambda: check_total(total, self.env.reward_range))

    def gold_reply(self) -> Reply:
        """Raises `EnvFailure` with a `NotImplementedError` as `error` if there are no gold replies."""
        given = self._called("gold_reply", self.env.gold_reply, self._deadlines.step_s)
        return self._read(lambda: read_gold(given))

    def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[float, dict[str, float]]]:
        """Reward and parts of each member of a group, in addition to its own reward."""
        env = self.env
        scores = self._called("score_group", lambda: env.score_group(conversations), self._deadlines.step_s)
        return self._read(lambda: read_scores(scores, len(conversations)))

    def close(self) -> None:
        """Close the environment. Exceptions and timeouts of its `close` are ignored."""
        env = self._opened.end()
        if env is not None:
            close_quietly(env, self._deadlines.step_s)

    def _made(self) -> TextEnv:
        env = self._make()
        if not self._opened.put(env):
            close_quietly(env, self._deadlines.step_s)
        check_attributes(env)
        return env

    def _called(self, phase: str, function: Callable[[], Any], timeout_s: float) -> Any:
        started = time.perf_counter()
        try:
            value = call_within(function, timeout_s)
            self._seconds.setdefault(phase, []).append(time.perf_counter() - started)
            return value
        except DeadlineError:
            reason = f"{phase or 'making it'} took longer than {timeout_s:g} s"
            raise EnvFailure(self._where, reason, timed_out=True) from None
        except KeyboardInterrupt:  # from a person: that of environment code arrives as another type
            raise
        except (ResultError, UnknownEnvironmentError, EnvironmentPluginError) as error:
            where = self._where if isinstance(error, ResultError) else ""
            raise EnvFailure(where, str(error), error=error) from error
        except BaseException as error:
            if is_ours(error):  # its message says what is wrong, such as an unknown level
                raise EnvFailure(self._where, error_text(error), error=error) from error
            raise EnvFailure(self._where, raised(error), phase=phase, error=error) from error

    def _read(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (Exception, SystemExit) as error:  # reading may run the environment's code
            raise EnvFailure(self._where, reason_of(error)) from error


def raised(error: BaseException) -> str:
    """A text that says what a call raised, and which line of the author's code led to it."""
    return named(error) + place_of(error)


def reason_of(error: BaseException) -> str:
    """A text that says why a result of an environment cannot be used."""
    return str(error) if isinstance(error, ResultError) else f"the environment's result cannot be read: {named(error)}"


def close_quietly(env: TextEnv, timeout_s: float) -> None:
    """Close an environment that has something to close, and wait for it. Exceptions are ignored."""
    try:
        if env.has_close:
            call_within(env.close, timeout_s)
    except Exception:
        return
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
