"""How is one environment played from code that is not asynchronous? Its calls with deadlines, its results checked.

Every failure leaves here as an `EnvFailure`. The trainer's counterpart is `rl.rollouts.env_session`, on its threads and
loop; what a valid result is (`envs.results`), how a failure is put into words (`raised`) and that an environment is
closed exactly once (`Opened`) are shared.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from envs.errors import error_text, is_ours, named, place_of
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
    """How long one call may take, in seconds. Training has its own (`rollout.reset_timeout_s`, `step_timeout_s`)."""

    reset_s: float = 120.0
    """Making the environment included."""
    step_s: float = 120.0
    """Also of a gold reply and of `score_group`."""


class EnvFailure(RuntimeError):
    """What an environment did that no rollout can go on after. Never the policy's doing."""

    def __init__(
        self, where: str, reason: str, *, phase: str = "", error: BaseException | None = None, timed_out: bool = False
    ) -> None:
        """`where` is environment, seed and split; `phase` the call that raised, where one did."""
        what = f"{phase} raised {reason}" if phase else reason
        super().__init__(f"{where}: {what}" if where else what)
        self.where, self.phase, self.reason = where, phase, reason
        self.error = error
        """What its code raised; None where it gave something wrong or took too long."""
        self.outcome = "env_timeout" if timed_out else "env_error"


class Opened:
    """The environment of one rollout, closed exactly once, however late it is made.

    A constructor may outlive the deadline of its call; whoever finds that nobody waits any more closes what it made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._env: TextEnv | None = None
        self._is_over = False

    def put(self, env: TextEnv) -> bool:
        """False where the rollout is over already: then the caller closes the environment."""
        with self._lock:
            if not self._is_over:
                self._env = env
            return not self._is_over

    def end(self) -> TextEnv | None:
        """The environment to close, the first time; None after that, and where none has been made yet."""
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
        """`seconds` gets how long each call of a phase (`reset`, `step`) took that gave something."""
        self._make, self._name = make_env, name
        self._seconds = seconds if seconds is not None else {}
        self._where = name
        self._deadlines = deadlines or Deadlines()
        self._opened = Opened()
        self._env: TextEnv | None = None
        self.reward = 0.0
        """The sum since `reset`."""
        self.parts: dict[str, float] | None = None
        """None as long as no step named any."""

    @classmethod
    def installed(cls, env_id: str, deadlines: Deadlines | None = None) -> "Session":
        """A session of an installed environment."""
        return cls(lambda: make(env_id), env_id, deadlines)

    @classmethod
    def of(cls, env: TextEnv, deadlines: Deadlines | None = None) -> "Session":
        """A session of an environment that somebody else made, and closes."""
        return cls(lambda: env, type(getattr(env, "inner", env)).__name__, deadlines)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def env(self) -> TextEnv:
        """Made when it is first needed."""
        if self._env is None:
            self._env = self._called("", self._made, self._deadlines.reset_s)
        assert self._env is not None
        return self._env

    def reset(self, seed: int, options: Mapping[str, Any]) -> tuple[tuple[Message, ...], dict[str, Any]]:
        """Opening messages and info of a task; `options` hold the split too."""
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
        """Raises `EnvFailure` whose `error` is an `EnvironmentOptionError` for options that the environment refuses."""
        env = self.env
        self._called("read_options", lambda: env.read_options(dict(options)), self._deadlines.reset_s)

    def step(self, reply: Reply) -> StepResult:
        """Play one reply; reward and parts are added up here, and the total is checked when the rollout is over."""
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
        """Raises where the total of a rollout lies outside of the declared range."""
        self._read(lambda: check_total(total, self.env.reward_range))

    def gold_reply(self) -> Reply:
        """Raises `EnvFailure` whose `error` is a `NotImplementedError` where there are none."""
        given = self._called("gold_reply", self.env.gold_reply, self._deadlines.step_s)
        return self._read(lambda: read_gold(given))

    def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[float, dict[str, float]]]:
        """What each member of a group earns beside its own reward."""
        env = self.env
        scores = self._called("score_group", lambda: env.score_group(conversations), self._deadlines.step_s)
        return self._read(lambda: read_scores(scores, len(conversations)))

    def close(self) -> None:
        """What `close` raises or takes too long for is nobody's business any more."""
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
        except KeyboardInterrupt:  # a person's: one that environment code raises arrives as another type
            raise
        except (ResultError, UnknownEnvironmentError, EnvironmentPluginError) as error:
            where = self._where if isinstance(error, ResultError) else ""
            raise EnvFailure(where, str(error), error=error) from error
        except BaseException as error:
            if is_ours(error):  # it says in words what is wrong, such as a level that there is none of
                raise EnvFailure(self._where, error_text(error), error=error) from error
            raise EnvFailure(self._where, raised(error), phase=phase, error=error) from error

    def _read(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (Exception, SystemExit) as error:  # reading may run the environment's code
            raise EnvFailure(self._where, reason_of(error)) from error


def raised(error: BaseException) -> str:
    """In words: what a call raised, and the line of the author's code that led to it."""
    return named(error) + place_of(error)


def reason_of(error: BaseException) -> str:
    """In words: why something that an environment gave cannot be used."""
    return str(error) if isinstance(error, ResultError) else f"what the environment gave cannot be read: {named(error)}"


def close_quietly(env: TextEnv, timeout_s: float) -> None:
    """Close an environment that has something to close, waited for; what that raises is left out."""
    try:
        if env.has_close:
            call_within(env.close, timeout_s)
    except Exception:
        return
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
