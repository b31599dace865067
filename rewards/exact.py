"""Is a text the expected one?"""


def text_correct(text: str, expected: str) -> float:
    """1.0 when the text is the expected one, without regard to case and to blanks around it; else 0.0."""
    return float(text.strip().casefold() == expected.strip().casefold())
