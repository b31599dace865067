"""Is the reply well formed: its think tags, its length, free of repetition?"""

import re
from collections import Counter

THINK = re.compile(r"</?think>")


def think_tags_valid(text: str) -> float:
    """1.0 when the raw text of a reply begins with its only `<think>...</think>` block, or has no tag; else 0.0."""
    tags = THINK.findall(text)
    one_block = tags == ["<think>", "</think>"] and text.lstrip().startswith("<think>")
    return float(not tags or one_block)


def matches(text: str, pattern: str) -> float:
    """1.0 when all of the text matches the regular expression, else 0.0."""
    return float(re.fullmatch(pattern, text.strip(), re.DOTALL) is not None)


def length_excess(length: int, free: int, most: int) -> float:
    """How far a length lies beyond what is free, in [0, 1]: 0 up to `free`, 1 from `most` on, linear between.

    The soft overlong punishment of DAPO (Yu et al. 2025, arXiv:2503.14476, equation 13) is minus this, with `free` the
    longest reply less the buffer.
    """
    if free >= most:
        raise ValueError(f"free ({free}) must be below most ({most})")
    return min(1.0, max(0.0, (length - free) / (most - free)))


def share_repeated(text: str, num_words: int = 4) -> float:
    """Share of the text's runs of `num_words` words that occurred before, in [0, 1]; 0 for shorter texts.

    As the repetition penalty of Yeo et al. 2025 ("Demystifying Long Chain-of-Thought Reasoning", arXiv:2502.03373) uses
    n-grams.
    """
    words = text.lower().split()
    runs = Counter(tuple(words[place : place + num_words]) for place in range(len(words) - num_words + 1))
    total = sum(runs.values())
    return 1.0 - len(runs) / total if total else 0.0


def abstention_reward(text: str, is_correct: float, abstains: str = "I don't know") -> float:
    """1 for a right answer, 0.5 for saying plainly that it is not known, 0 for a wrong one.

    So answering pays where the chance to be right is above one half. As in the abstention training of Nemotron 3.
    """
    said = text.strip().rstrip(".").casefold().replace("\u2019", "'")
    return 0.5 if said == abstains.casefold() else float(is_correct == 1.0)
