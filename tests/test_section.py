"""A section of one of several kinds: read, refused, dumped and explained."""

from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from rl.config.section import NameOf, OneOf, Positive, Section


class Fruit(Section):
    pass


class Apple(Fruit):
    """A round fruit."""

    kind: Literal["apple"] = "apple"
    num_seeds: Positive = 5


class Banana(Fruit):
    kind: Literal["banana"] = "banana"
    length: float = 20.0


FRUITS: dict[str, type[Fruit]] = {"apple": Apple, "banana": Banana}


class Basket(Section):
    fruit: Annotated[Fruit, OneOf(FRUITS, "kind", "apple")] = Apple()
    spare: Annotated[Fruit, OneOf(FRUITS, "kind", "apple")] | None = None
    colour: Annotated[str, NameOf({"red": 1, "green": 2})] = "red"
    is_heavy: bool | None = None
    num_handles: Positive | None = None


def test_the_key_chooses_the_kind_and_a_text_alone_is_short_for_it() -> None:
    assert Basket.model_validate({"fruit": {"kind": "banana", "length": 3}}).fruit == Banana(length=3)
    assert Basket.model_validate({"fruit": "banana"}).fruit == Banana()
    assert Basket.model_validate({"fruit": {"num_seeds": 2}, "spare": "apple"}).spare == Apple()


def test_a_dumped_section_is_read_back_as_the_same_kind() -> None:
    basket = Basket.model_validate({"fruit": {"kind": "banana", "length": 3}, "spare": "apple"})
    assert basket.model_dump(mode="json")["fruit"] == {"kind": "banana", "length": 3.0}
    assert Basket.model_validate(basket.model_dump(mode="json")) == basket


@pytest.mark.parametrize(
    ("tree", "place", "words"),
    [
        ({"fruit": "cherry"}, ("fruit",), "kind is not one of apple, banana"),
        ({"fruit": 3}, ("fruit",), "not a section of keys"),
        ({"fruit": {"num_seeds": 0}}, ("fruit", "num_seeds"), "greater than 0"),
        ({"fruit": {"kind": "banana", "num_seeds": 3}}, ("fruit", "num_seeds"), "not permitted"),
        ({"colour": "blue"}, ("colour",), "not one of red, green"),
        ({"num_handles": True}, ("num_handles",), "true is a truth value, which this key does not accept"),
    ],
)
def test_what_does_not_fit_is_refused_at_its_place(tree: dict[str, object], place: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Basket.model_validate(tree)
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert words in error["msg"]


def test_a_truth_value_may_be_left_out() -> None:
    given = [{"is_heavy": True}, {"is_heavy": False}, {"is_heavy": None}, {}]
    assert [Basket.model_validate(one).is_heavy for one in given] == [True, False, None, None]


def test_an_entry_added_to_the_dict_is_a_kind_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cherry(Fruit):
        kind: Literal["cherry"] = "cherry"

    monkeypatch.setitem(FRUITS, "cherry", Cherry)
    assert Basket.model_validate({"fruit": "cherry"}).fruit == Cherry()
