"""Which errors are told in a sentence, and which are bugs that want their traceback?"""

OURS = frozenset({"rl", "sft", "envs", "rewards"})


def is_ours(error: BaseException) -> bool:
    """Whether the error is one of polygym's own types, whose message says what was wrong and how to mend it.

    Ray wraps an actor's error in a type that inherits from it, so all bases are looked at.
    """
    return any(base.__module__.partition(".")[0] in OURS for base in type(error).__mro__)
