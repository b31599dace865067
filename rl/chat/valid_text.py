"""Which text can be tokenised and saved? Text that UTF-8 can encode: half a surrogate pair is replaced.

Python text may hold half of a surrogate pair: from a JSON escape, an exception's message, or a file name. Tokenizers,
files and sockets refuse such text. A policy can write one on purpose, so it must never be an error.
"""


def valid_text(text: str) -> str:
    """The text with halves of surrogate pairs joined where they belong together, else replaced by U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid_json(value: object) -> object:
    """A value that JSON can hold, with every text in it made valid, keys included."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, dict):
        return {valid_json(key): valid_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [valid_json(item) for item in value]
    return value
