"""Any gymnasium environment that can be shown and played as text, as an environment here."""

from typing import Any, ClassVar

import gymnasium
from gymnasium.envs.registration import load_env_creator

from envs.adapters.foreign import in_unit_range
from envs.messages import Message, Reply
from envs.text_env import EnvironmentOptionError, StepResult, TextEnv, in_split

MAX_SEEDS = 1000
MAX_DIGITS = 9


class Gymnasium(TextEnv):
    """Play a gymnasium environment. The policy is shown its observation or text rendering; the reply is the action.

    Actions of a `Discrete` space are numbers or the names given as `actions`. Actions of a `Text` space are the last
    line of the reply. An invalid action is reported to the policy and uses up a turn. The sum of rewards is scaled from
    [`lowest`, `highest`] to [0, 1].

    Options: `id` names the environment for `gymnasium.make` (`module:Name-v0` imports a module first), `kwargs` are its
    arguments, `actions` names its actions in order, `told` is a text shown before the first observation, `turns` is the
    maximum number of replies; `lowest` and `highest` bound the sum of its rewards.
    Reward parts: `return` the sum of rewards, from 0 to 1.
    """

    OPTIONS: ClassVar = {
        "id": "FrozenLake-v1",
        "kwargs": {"is_slippery": False},
        "actions": ["left", "down", "right", "up"],
        "told": "You are on a frozen lake: S start, F ice, H hole, G goal.",
        "turns": 30,
        "lowest": 0.0,
        "highest": 1.0,
    }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, self._options = self.read_options(options)
        self.max_turns = self._options["turns"]  # type: ignore[misc]
        self.close()
        self._game = self._make()
        seeds = (int(self.np_random.integers(2**31)) for _ in range(MAX_SEEDS))
        game_seed = next(number for number in seeds if in_split(str(number), split))
        observation, _ = self._game.reset(seed=game_seed)
        self._return, self._num_turns = 0.0, 0
        actions = self._options["actions"]
        names = f" Reply with one of: {', '.join(actions)}." if actions else ""
        told = f"{self._options['told']}{names}\n{self._told(observation)}".strip()
        return (Message("user", told),), {"key": str(game_seed)}

    def step(self, action: Reply) -> StepResult:
        self._num_turns += 1
        last_turn = self._num_turns == self.max_turns
        chosen = self._action(action.text)
        if chosen is None:
            told, terminated, truncated = "That is no action.", False, False
        else:
            observation, reward, terminated, truncated, _ = self._game.step(chosen)
            self._return += float(reward)
            told = self._told(observation)
        if terminated or truncated or last_turn:
            total = in_unit_range(self._return, self._options["lowest"], self._options["highest"])
            return (), total, True, False, {"reward_parts": {"return": total}}
        return (Message("user", told),), 0.0, False, False, {}

    def close(self) -> None:
        game = getattr(self, "_game", None)
        if game is not None:
            game.close()

    def _make(self) -> gymnasium.Env:
        kwargs = dict(self._options["kwargs"])
        try:
            spec = gymnasium.spec(self._options["id"])
            point = spec.entry_point
            made_by = load_env_creator(point) if isinstance(point, str) else point
            if "ansi" in getattr(made_by, "metadata", {}).get("render_modes", ()):
                kwargs.setdefault("render_mode", "ansi")
            return gymnasium.make(self._options["id"], disable_env_checker=True, **kwargs)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise EnvironmentOptionError(f"gymnasium cannot make {self._options['id']!r}: {error}") from error

    def _told(self, observation: Any) -> str:
        rendered = self._game.render() if self._game.render_mode == "ansi" else None
        return str(observation if rendered is None else rendered).strip()

    def _action(self, text: str) -> Any:
        """The action that the reply names, or None."""
        lines = text.strip().splitlines()
        last = lines[-1].strip() if lines else ""
        space = self._game.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            names = [name.lower() for name in self._options["actions"]]
            is_number = last.isdecimal() and len(last) < MAX_DIGITS
            number = names.index(last.lower()) if last.lower() in names else int(last) if is_number else -1
            return number + int(space.start) if 0 <= number < space.n else None
        return last if isinstance(space, gymnasium.spaces.Text) and space.contains(last) else None
