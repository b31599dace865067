"""Does a text equal the expected text?"""


def text_correct(text: str, expected: str) -> float:
    """1.0 if the text equals the expected text, ignoring case and surrounding blanks; else 0.0."""
    return float(text_key(text) == text_key(expected))


def text_key(text: str) -> str:
    """Equal for texts that `text_correct` takes for the same."""
    return text.strip().casefold()
