"""Exact answers."""

import pytest

from rewards.exact import text_correct


@pytest.mark.parametrize(("text", "reward"), [("one", 1.0), (" One\n", 1.0), ("one.", 0.0), ("", 0.0), ("on e", 0.0)])
def test_a_text_is_the_expected_one_or_not(text: str, reward: float) -> None:
    assert text_correct(text, "one") == reward
