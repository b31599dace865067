"""Can the policy use tools on a store that has state: look up prices and stock, decide, and buy?"""

from dataclasses import dataclass

import numpy as np

from envs.messages import Reply, ToolCall
from envs.text_env import Split, choose_level, draw_in_split
from rewards.numbers import number_correct
from rewards.rubric import Rubric

ITEMS = ("milk", "rice", "tea", "egg", "soap", "corn", "salt", "fish")
RUBRIC = Rubric({"answer": 0.5, "state": 0.5})
LARGEST_PRICE = 9
LARGEST_STOCK = 9
SHELF_STOCK = 50
"""Stock of items that a task is not about, and of items that must never run out."""


@dataclass(frozen=True, slots=True)
class Errand:
    """A task of the store: the question, the items it is about, and their prices and stocks.

    `kind` is one of `cost`, `enough`, `cheaper`, `spend` and `both`. `counts`, `prices` and `stocks` belong to `items`
    in order; `counts` are the numbers to buy, or the money for `spend`.
    """

    kind: str
    items: tuple[str, ...]
    counts: tuple[int, ...]
    prices: tuple[int, ...]
    stocks: tuple[int, ...]

    @property
    def prompt(self) -> str:
        item, count = self.items[0], self.counts[0]
        other, other_count = self.items[-1], self.counts[-1]
        return {
            "cost": f"What do {count} {item} cost?",
            "enough": f"Buy {count} {item} if enough. How many are left?",
            "cheaper": f"Buy {count} {item} or {other}, the cheaper. What is its price?",
            "spend": f"Buy {item} for {count}. How many do you get?",
            "both": f"What do {count} {item} and {other_count} {other} cost?",
        }[self.kind]

    @property
    def bought(self) -> tuple[str, int] | None:
        """What must be bought: item and number; None if nothing may be bought."""
        if self.kind == "enough" and self.counts[0] <= self.stocks[0]:
            return self.items[0], self.counts[0]
        if self.kind == "cheaper":
            return self.items[int(np.argmin(self.prices))], self.counts[0]
        if self.kind == "spend":
            return self.items[0], self.counts[0] // self.prices[0]
        return None

    @property
    def answer(self) -> int:
        if self.kind in ("cost", "both"):
            return sum(count * price for count, price in zip(self.counts, self.prices, strict=True))
        if self.kind == "enough":
            return self.stocks[0] - (self.bought[1] if self.bought else 0)
        return min(self.prices) if self.kind == "cheaper" else self.counts[0] // self.prices[0]

    @property
    def lookups(self) -> tuple[ToolCall, ...]:
        """What must be looked up first, all in one turn."""
        tool = "stock" if self.kind == "enough" else "price"
        return tuple(ToolCall(tool, {"item": item}) for item in self.items)

    @property
    def thought(self) -> str:
        """The decision that follows from what was looked up."""
        if self.kind == "enough":
            return f"{self.stocks[0]}{'>=' if self.bought else '<'}{self.counts[0]}"
        if self.kind == "cheaper":
            return f"{min(self.prices)}<{max(self.prices)}"
        if self.kind == "spend":
            return f"{self.counts[0]}/{self.prices[0]}={self.answer}"
        products = [count * price for count, price in zip(self.counts, self.prices, strict=True)]
        lines = [f"{count}*{price}={count * price}" for count, price in zip(self.counts, self.prices, strict=True)]
        return "\n".join(lines + ([f"{products[0]}+{products[1]}={self.answer}"] if self.kind == "both" else []))


LEVELS = {
    1: ("cost", "enough"),
    2: ("cost", "enough", "cheaper"),
    3: ("enough", "cheaper", "spend"),
    4: ("cheaper", "spend", "both"),
}


def draw_errand(rng: np.random.Generator, kinds: tuple[str, ...]) -> Errand:
    """An errand of one of the kinds; `cheaper` has two different prices, `spend` leaves no remainder."""
    kind = str(rng.choice(kinds))
    num_items = 2 if kind in ("cheaper", "both") else 1
    items = tuple(str(item) for item in rng.choice(ITEMS, size=num_items, replace=False))
    prices = tuple(int(price) for price in rng.choice(np.arange(1, LARGEST_PRICE + 1), size=num_items, replace=False))
    stocks = (int(rng.integers(1, LARGEST_STOCK + 1)),) if kind == "enough" else (SHELF_STOCK,) * num_items
    counts = tuple(int(count) for count in rng.integers(2, 6, size=num_items))
    if kind == "enough":
        counts = (int(rng.integers(2, LARGEST_STOCK)),)
    elif kind == "cheaper":
        counts = (counts[0],) * num_items
    elif kind == "spend":
        counts = (counts[0] * prices[0],)
    return Errand(kind, items, counts, prices, stocks)


def errand_key(errand: Errand) -> str:
    """The identity of an errand: the request and the values that decide its answer."""
    values = errand.stocks if errand.kind == "enough" else errand.prices
    return f"{errand.prompt} {' '.join(map(str, values))}"


class Store:
    """Run an errand in a store with three tools: `price`, `stock`, `buy`.

    The errand asks for a cost, or to buy something and answer with a number; both the answer and the purchase count.
    The gold conversation has two or three turns. The answer is the last number of the last reply.

    Options: `level` selects the errands: 1 the cost of some of an item, buy if there are enough; 2 also: buy what costs
    less; 3 buy if there are enough, buy what costs less, buy for a sum of money; 4 buy what costs less, buy for a sum,
    the cost of two items together.
    Reward parts: `answer` 0.5 if the number is right; `state` 0.5 if the final stock is right, where a stock that
    should not change counts only together with the right answer.
    """

    max_turns = 5

    def reset(self, rng: np.random.Generator, split: Split, level: int = 1) -> str:
        kinds = choose_level(level, LEVELS)
        self._errand = draw_in_split(rng, split, lambda rng: draw_errand(rng, kinds), errand_key)
        self.key = errand_key(self._errand)
        self._prices = {item: int(rng.integers(1, LARGEST_PRICE + 1)) for item in ITEMS}
        self._prices |= dict(zip(self._errand.items, self._errand.prices, strict=True))
        self._stock = dict.fromkeys(ITEMS, SHELF_STOCK) | dict(
            zip(self._errand.items, self._errand.stocks, strict=True)
        )
        self._opening_stock = dict(self._stock)
        self._looked_up: set[str] = set()
        return self._errand.prompt

    def price(self, item: str) -> str:
        """Price of one"""
        self._look_up(item)
        return str(self._prices[item])

    def stock(self, item: str) -> str:
        """Number in stock"""
        self._look_up(item)
        return str(self._stock[item])

    def buy(self, item: str, count: int) -> str:
        """Buy items"""
        self._look_up(item)
        if not 0 < count <= self._stock[item]:
            raise ValueError(f"count must be 1 to {self._stock[item]}")
        self._stock[item] -= count
        return f"{self._stock[item]} left"

    def score(self, reply: Reply) -> dict[str, float]:
        answer = number_correct(reply.text, self._errand.answer)
        changed = self._errand.bought is not None
        state = float(self._stock == self._wanted_stock() and (changed or answer == 1.0))
        return RUBRIC({"answer": answer, "state": state})

    def gold_reply(self) -> Reply:
        if not self._looked_up.issuperset(self._errand.items):
            return Reply("", "", self._errand.lookups)
        bought = self._errand.bought
        if bought and self._stock == self._opening_stock:
            return Reply("", self._errand.thought, (ToolCall("buy", {"item": bought[0], "count": bought[1]}),))
        return Reply(str(self._errand.answer), "" if bought else self._errand.thought)

    def _look_up(self, item: str) -> None:
        if item not in ITEMS:
            raise ValueError(f"no item {item}; items: {', '.join(ITEMS)}")
        self._looked_up.add(item)

    def _wanted_stock(self) -> dict[str, int]:
        wanted = dict(self._opening_stock)
        if self._errand.bought:
            item, count = self._errand.bought
            wanted[item] -= count
        return wanted
