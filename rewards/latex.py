"""What does a short piece of LaTeX say without its styling? Text to text; nothing is evaluated.

Meant for answers of a few hundred characters.
"""

import re
import unicodedata

SIGNS = {
    **dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\uff0d", "-"),  # minus signs, hyphens and the figure dash
    **dict.fromkeys("\u00a0\u2007\u2009\u202f", " "),
    **{sign: "^" + str(power) for power, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
FRACTIONS = {
    chr(code): unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F))
}
TABLE = str.maketrans({**SIGNS, **{sign: f" {plain}" for sign, plain in FRACTIONS.items()}})
BOLD = re.compile(r"(?<![\w)\]])(?:\*\*|__)(?=[^\s*])|(?<=[^\s*])(?:\*\*|__)(?![\w(\[])|`")
COMMANDS = {
    "×": r"\times ",  # noqa: RUF001
    "÷": r"\div ",
    "·": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",  # noqa: RUF001
    "∩": r"\cap ",
    "∈": r"\in ",
    "\u211d": r"\mathbb{R}",
    "\u2124": r"\mathbb{Z}",
    "∅": r"\emptyset ",
    "\u00f8": r"\emptyset ",
    "°": r"^\circ ",
    "θ": r"\theta ",
    "√(": r"\sqrt(",
    "√": r"\sqrt ",
}
SYNONYMS = {
    r"\varnothing": r"\emptyset",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\leq": r"\le",
    r"\leqslant": r"\le",
    r"\geq": r"\ge",
    r"\geqslant": r"\ge",
    r"\neq": r"\ne",
    r"\lt": "<",
    r"\gt": ">",
    r"\ast": "*",
    r"\lg": r"\log",
    r"\degree": r"^\circ",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\mid": "|",
    r"\infin": r"\infty",
    r"\left": "",
    r"\right": "",
    r"\displaystyle": "",
    r"\textstyle": "",
    r"\limits": "",
    r"\nolimits": "",
    r"\big": "",
    r"\Big": "",
    r"\bigl": "",
    r"\bigr": "",
    r"\Bigl": "",
    r"\Bigr": "",
    r"\quad": " ",
    r"\qquad": " ",
    r"\thinspace": " ",
    r"\rm": "",
    r"\bf": "",
    r"\it": "",
}
COMMAND = re.compile(r"\\[A-Za-z]+")
SPACES = re.compile(r"\\[,;: >\n]|~|[ \t\n\r]+")
STYLED = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|md|up)?|mbox|hbox|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|boldsymbol|bm"
    r"|boxed|fbox|emph|underline|phantom)[ \t]*\{([^{}]*)\}"
)
SIMPLE = re.compile(r"\(?[A-Za-z]\)?|[^A-Za-z]+")
FUNCTIONS = re.compile(
    r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|max|min|gcd|lcm|det|sqrt|pi|infty"
)
BARE_FUNCTION = re.compile(
    r"(?<![\\A-Za-z{])(sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infty|infinity|inf)(?![A-Za-z])"
)
AND_OR = re.compile(r"[ ,;]*(?:\\text\{[ ,;]*(?:and|or)[ ,;]*\}|(?<![\\A-Za-z])(?:and|or)(?![A-Za-z}]))[ ,;]*")
DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))


def plain_signs(text: str) -> str:
    """The text with one kind of minus sign and blank, `a/b` and `^n` for single Unicode characters, and no bold."""
    return BOLD.sub("", text.translate(TABLE))


def plain_latex(text: str) -> str:
    """An answer without delimiters, styling and spacing commands, one name per symbol; words stay in `\\text{}`."""
    text = undelimited(plain_signs(text).strip()).removeprefix("\\approx")
    for sign, command in COMMANDS.items():
        text = text.replace(sign, command)
    text = text.replace("\\!", "").replace("{,}", ",").replace("{:}", ":").replace("\\$", "$").replace("\\-", "")
    text = SPACES.sub(" ", text)
    text = COMMAND.sub(lambda found: SYNONYMS.get(found[0], found[0]), text)
    text = unstyled(text).replace("$", "")
    text = AND_OR.sub(", ", text)
    text = BARE_FUNCTION.sub(lambda found: "\\" + ("infty" if found[1][:3] == "inf" else found[1]), text)
    return _braced_arguments(re.sub(r" {2,}", " ", text).strip())


def undelimited(text: str) -> str:
    """The text without mathematics or bold delimiters around all of it, and without a full stop at its end."""
    before = None
    while text != before:
        before = text
        text = text.strip()
        if re.search(r"[\w)\]}$%*]\.\Z|[\w)\]}$%*][,;]\Z", text):
            text = text[:-1]
        for opening, closing in DELIMITERS:
            inner = text[len(opening) : len(text) - len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner
        if len(text) > 1 and text[0] == "{" and text[-1] == "}" and "{" not in text[1:] and "}" not in text[:-1]:
            text = text[1:-1]
    return text


def unstyled(text: str) -> str:
    """Replaces styling commands by their content if that is mathematics; words become `\\text{words}`."""
    for _ in range(4):  # nested styles
        changed = STYLED.sub(_content, text)
        if changed == text:
            break
        text = changed
    return text.replace("\x00", "\\text{").replace("\x01", "}")


def _content(found: re.Match[str]) -> str:
    content, name = found[1], found[0][1:]
    bare = content.strip()
    if not bare:
        return " "
    if FUNCTIONS.fullmatch(bare):
        return f"\\{bare} "
    if name.startswith(("boxed", "fbox", "underline", "boldsymbol", "bm")) or SIMPLE.fullmatch(bare):
        return content
    return f"\x00{content}\x01"


def _braced_arguments(text: str) -> str:
    """`\\frac12`, `\\sqrt2` and `\\sqrt(2)` with the braces that a parser needs; `2**3` as `2^3`."""
    text = re.sub(r"\\\{ ?\\\}", r"\\emptyset", text.replace("**", "^"))
    text = re.sub(r"\{? ?(\w+) ?\\choose ?(\w+) ?\}?", r"\\binom{\1}{\2}", text)
    text = re.sub(r"_(\w) ", r"_{\1} ", text)
    text = re.sub(r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt ?(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"\\frac ?(\d|[A-Za-z]) ?(\d|[A-Za-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac ?(\d|[A-Za-z]) ?\{", r"\\frac{\1}{", text)
    text = re.sub(r"(\\frac ?\{[^{}]*\}) ?(\d|[A-Za-z])", r"\1{\2}", text)
    return re.sub(r"\^ ?(?:\(([^()]*)\)|(-\d+))", r"^{\1\2}", text)
