"""The files that `python -m envs new` writes, as templates; names after `$` are filled in."""

PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$package"
version = "0.1.0"
requires-python = ">=3.11"

[project.entry-points."polygym.envs"]
"$env_id" = "$module:$target"

[tool.setuptools]
py-modules = ["$module"]
"""

README = """\
# $package

The environment `$env_id` for polygym, in `$module.py`.

    pip install --no-deps --no-build-isolation -e .
    python -m envs check $env_id        # is it sound?
    python -m envs play $env_id         # be the policy
    pytest

In an experiment's YAML:

    environments:
      $env_id: {options: {level: 1}}
"""

TESTS = """\
from envs.check import check_environment


def test_it_keeps_the_contract():
    failed = [result for result in check_environment("$env_id") if result.status == "failed"]
    assert not failed, failed
"""

FUNCTION = '''\
"""Can the policy write a word backwards?"""

from envs.messages import Reply
from envs.scored import Row, scored
from rewards.exact import text_correct

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


def draw_row(rng, level: int = 1) -> Row:
    word = "".join(rng.choice(LETTERS, size=4 * level))
    return {"prompt": f"Write {word} backwards.", "gold": word[::-1]}


@scored(draw=draw_row)
def $module(reply: Reply, row: Row):
    """Write a word backwards and nothing else.

    Options: `level` sets how long words are. Reward parts: `correct` 1 when the text is right.
    """
    return {"correct": text_correct(reply.text, row["gold"])}
'''

TOOLS = '''\
"""On which shelf is a book? The policy must look it up."""

from envs.messages import Reply, ToolCall
from envs.text_env import draw_in_split
from rewards.numbers import number_correct

LETTERS = list("abcdefghijklmnopqrstuvwxyz")


class $name:
    """Say on which shelf a book is; the tool `find` looks it up.

    Options: `level` sets how many shelves there are. Reward parts: `answer` 1 when the number is right.
    """

    max_turns = 4

    def reset(self, rng, split, level: int = 1):
        self.book = draw_in_split(rng, split, lambda rng: "".join(rng.choice(LETTERS, size=6)), key=str)
        self.shelf = int(rng.integers(10, 10 + 90 * level))
        self.was_asked = False
        return f"On which shelf is the book {self.book}?"

    def find(self, book: str) -> str:
        """Say where a book is.

        Args:
            book: Title of the book.
        """
        if book != self.book:
            raise ValueError(f"there is no book {book}")
        self.was_asked = True
        return f"shelf {self.shelf}"

    def score(self, reply):
        return {"answer": number_correct(reply.text, self.shelf)}

    def gold_reply(self):
        return Reply(str(self.shelf)) if self.was_asked else Reply("", "", (ToolCall("find", {"book": self.book}),))
'''

FULL = '''\
"""Which number am I thinking of? Each guess is answered with higher or lower."""

from envs.messages import Message, Reply
from envs.text_env import TextEnv, draw_in_split
from rewards.numbers import final_answer, parse_number


class $name(TextEnv):
    """Guess a number in at most eight tries.

    Options: `level` sets the largest number: 100 times the level. Reward parts: `found` 1 when it was guessed.
    """

    OPTIONS = {"level": 1}
    max_turns = 8

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        self.low, self.high = 1, 100 * chosen["level"]
        self.secret = draw_in_split(self.np_random, split, lambda rng: int(rng.integers(1, self.high + 1)), key=str)
        self.num_tries = 0
        return (Message("user", f"Guess my number, {self.low} to {self.high}."),), {"key": self.secret}

    def step(self, reply):
        self.num_tries += 1
        guess = parse_number(final_answer(reply.text))
        found = float(guess == self.secret)
        if found or self.num_tries == self.max_turns:
            return (), found, True, False, {"reward_parts": {"found": found}}
        if guess is None:
            return (Message("user", "Guess with a number."),), 0.0, False, False, {}
        if guess < self.secret:
            self.low = max(self.low, int(guess) + 1)
        else:
            self.high = min(self.high, int(guess) - 1)
        return (Message("user", "higher" if guess < self.secret else "lower"),), 0.0, False, False, {}

    def gold_reply(self):
        return Reply(str((self.low + self.high) // 2))
'''

ENVIRONMENTS = {"function": FUNCTION, "tools": TOOLS, "full": FULL}
