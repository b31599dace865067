"""Does a text equal the expected text?"""


def text_correct(text: str, expected: str) -> float:
    """1.0 if the text equals the expected text, ignoring case and surrounding blanks; else 0.0."""
    return float(text.strip().casefold() == expected.strip().casefold())
