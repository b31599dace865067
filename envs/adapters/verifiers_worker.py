"""What runs in a worker process of `envs.adapters.verifiers_tasks`: a taskset of `verifiers`, and its scoring.

The worker's Python may belong to another Python environment, so nothing of polygym is imported, and `main` is
deliberately a copy of the one in `reasoning_gym_worker.py`. Run by path; see `rewards.worker_pool` for the protocol.
"""
# pyright: reportMissingImports=false

import asyncio
import functools
import inspect
import json
import os
import sys
from typing import Any

LIMITED_TO = 10_000
"""Maximum number of tasks taken from a taskset; some tasksets have no end."""


@functools.cache
def tasks(name: str, config: str) -> list[Any]:
    """Raises `ValueError` for a taskset that needs more than messages to be played and scored."""
    from verifiers.v1 import Task, Taskset, TasksetConfig
    from verifiers.v1.utils.generic import concrete_type
    from verifiers.v1.utils.loaders import taskset_class

    made_by = taskset_class(name)
    of_kind: Any = concrete_type(made_by, TasksetConfig, origin=Taskset) or TasksetConfig
    taskset = made_by(of_kind.model_validate({**json.loads(config), "id": name}))
    found = list(taskset.take(LIMITED_TO))
    for task in found:
        kind = type(task)
        overridden = [hook for hook in ("setup", "finalize") if getattr(kind, hook) is not getattr(Task, hook)]
        scorers = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
        needy = [scorer.__name__ for scorer in scorers if "runtime" in inspect.signature(scorer).parameters]
        if kind.NEEDS_CONTAINER or overridden or needy:
            raise ValueError(f"{name} needs a runtime ({', '.join([*overridden, *needy]) or 'a container'})")
        if made_by.toolsets(taskset.config) or kind.toolsets(task.config):
            raise ValueError(f"{name} has tools")
        if task.data.prompt is None:
            raise ValueError(f"{name} lets a user open the conversation")
    return found


def rows(name: str, config: str) -> list[dict[str, Any]]:
    """The prompt of each task as messages, and its key."""
    return [{"prompt": opening(task.data), "key": task.key} for task in tasks(name, config)]


def opening(data: Any) -> list[dict[str, str]]:
    from verifiers.v1.types import content_text

    asked = [("user", data.prompt)] if isinstance(data.prompt, str) else [(m.role, m.content) for m in data.prompt]
    said = [*([("system", data.system_prompt)] if data.system_prompt else []), *asked]
    return [{"role": role, "content": content_text(content)} for role, content in said]


def score(name: str, config: str, number: int, key: str, text: str, reasoning: str) -> dict[str, Any]:
    """Each reward times its weight, by name."""
    import verifiers.v1 as vf
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, TraceTask

    task = tasks(name, config)[number]
    if task.key != key:
        raise ValueError(f"task {number} differs between processes: the taskset loads in no fixed order")
    kinds = {"system": vf.SystemMessage, "user": vf.UserMessage, "assistant": vf.AssistantMessage}
    messages: list[Any] = [kinds[one["role"]](content=one["content"]) for one in opening(task.data)]
    messages.append(vf.AssistantMessage(content=text, reasoning_content=reasoning or None))
    trace = vf.Trace(
        task=TraceTask(type=type(task).__name__, data=task.data, key=task.key),
        agent=AgentInfo(config=AgentConfig()),
        nodes=[
            MessageNode(parent=place - 1 if place else None, message=message, sampled=place == len(messages) - 1)
            for place, message in enumerate(messages)
        ],
    )
    asyncio.run(task.score(trace))
    missing = [part for part, reward in trace.rewards.items() if reward is None]
    if missing or not trace.rewards:
        raise ValueError(f"reward {missing[0]} was not given" if missing else "there are no rewards")
    return {part: reward.value for part, reward in trace.rewards.items()}


def main() -> None:
    import verifiers.v1  # noqa: F401 - reports missing packages before the first question

    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - tasksets may print
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        what, arguments = json.loads(line)
        try:
            result: Any = {"rows": rows, "score": score}[what](*arguments)
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
