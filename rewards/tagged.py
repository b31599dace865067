"""What is the text between `<answer>` and `</answer>`?"""

OPENING, CLOSING = "<answer>", "</answer>"


def tagged_answer(text: str) -> str | None:
    """The content of the text's last answer tags, without surrounding blanks; None if there are none."""
    start = text.rfind(OPENING, 0, max(text.rfind(CLOSING), 0))
    if start < 0:
        return None
    return text[start + len(OPENING) : text.find(CLOSING, start)].strip()
