"""Which number has a person? An own environment with one tool."""

from envs.messages import Reply, ToolCall

STEMS = ("Al", "Be", "Da", "El", "Jo", "Ka", "Li", "Ma", "Ro", "Sa")
FIRST = [stem + end for stem in STEMS for end in ("da", "la", "na", "rik", "ton")]
LAST = [stem + end for stem in ("Berg", "Cole", "Holm", "Lund", "Moss") for end in ("", "er", "ing", "man")]
NAMES = [f"{first} {last}" for first in FIRST for last in LAST]
NUMBERS = {name: 200 + 157 * index % 797 for index, name in enumerate(NAMES)}


class PhoneBook:
    """Find a person's number."""

    max_turns = 4

    def reset(self, rng, split):
        names = [name for index, name in enumerate(NAMES) if (index % 9 == 0) == (split == "heldout")]
        self.key = self.wanted = str(rng.choice(names))
        self.found = False
        return f"What is the number of {self.wanted}? Answer with the number alone."

    def look_up(self, name: str) -> str:
        """Look a number up.

        Args:
            name: First and last name.
        """
        if name not in NUMBERS:
            raise ValueError(f"there is no {name}")
        self.found = self.found or name == self.wanted
        return str(NUMBERS[name])

    def score(self, reply):
        return float(self.found and reply.text.strip() == str(NUMBERS[self.wanted]))

    def gold_reply(self):
        if self.found:
            return Reply(str(NUMBERS[self.wanted]))
        return Reply("", "", (ToolCall("look_up", {"name": self.wanted}),))
