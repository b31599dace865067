"""`python -m envs view`: one self-contained HTML page of saved rollouts, to be read in any browser."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.commands.output import write_text
from envs.commands.view_page import PAGE
from envs.messages import valid_text
from envs.rollout_file import array_from, read_rollouts

MAX_ROLLOUTS = 2000
"""More rollouts make a page that browsers are slow with; the newest are kept."""


def write_page(place: Path, out: Path, limit: int = MAX_ROLLOUTS) -> str:
    """Write the page, and return a text with its number of rollouts. Raises `RolloutFileError`, `OutputError`."""
    rollouts = list(read_rollouts(place))
    shown = rollouts[-limit:]
    write_text(out, page(shown, str(place), token_texts(place)))
    left_out = f", the newest of {len(rollouts)}" if len(shown) < len(rollouts) else ""
    return f"wrote {out}: {len(shown)} rollouts{left_out}"


def token_texts(place: Path) -> Sequence[str]:
    """The texts of the run's tokens by id, which a trainer writes into its run folder; empty if there are none."""
    found = [folder / "tokens.json" for folder in (place, *place.parents[:2]) if (folder / "tokens.json").is_file()]
    return json.loads(found[0].read_text()) if found else ()


def page(rollouts: Iterable[Mapping[str, Any]], title: str, texts: Sequence[str] = ()) -> str:
    """The page as text; `texts` are the texts of the tokens by id.

    The page embeds what a policy wrote as data, which can never become markup or script.
    """
    data = json.dumps([slim(rollout, texts) for rollout in rollouts], ensure_ascii=True, default=str)
    safe = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return PAGE.replace("__TITLE__", _escape(valid_text(title))).replace("__ROLLOUTS__", safe)


def slim(rollout: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The parts of a rollout that the page shows."""
    task = rollout["task"]
    return {
        "env": task["env_id"],
        "seed": task["seed"],
        "split": task.get("split", ""),
        "budget": task.get("budget", ""),
        "step": rollout.get("step"),
        "member": rollout.get("member"),
        "reward": rollout.get("reward"),
        "parts": rollout.get("reward_parts", {}),
        "outcome": rollout.get("outcome", ""),
        "error": rollout.get("error", ""),
        "messages": rollout["messages"],
        "turns": [turn_tokens(turn, texts) for turn in rollout.get("turns", ())],
    }


def turn_tokens(turn: Mapping[str, Any], texts: Sequence[str]) -> list[tuple[str, float, int]]:
    """Text (or id) and logprob of each token of a reply, and 1 if the token was forced and so is not trained."""
    ids, logprobs, sampled = (array_from(turn["reply"][name]).tolist() for name in ("ids", "logprob", "sampled"))
    return [
        (str(texts[token]) if token < len(texts) else f"{token} ", round(logprob, 3), int(not is_sampled))
        for token, logprob, is_sampled in zip(ids, logprobs, sampled, strict=True)
    ]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
