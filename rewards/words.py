"""What are a text's words and sentences? For scripts with and without spaces, vowel signs and capitals.

A word is a run of letters, digits and underscores with the marks that belong to them (vowel signs, combining accents,
joiners), and with apostrophes inside, straight or typographic. Texts in scripts without spaces between words are not
split: a run of Chinese is one word, as for `\\w+`.

A sentence ends at `.`, `!`, `?` or an ellipsis before white space, and at the full stops of other scripts (`。`, `।`)
even without white space. It includes the closing quotes, brackets and asterisks after its mark. `_ends_sentence` has
the exceptions. Every pattern here takes linear time: runs are possessive, and only a bounded stretch of text before and
after a mark is examined.
"""

import unicodedata

import regex

LETTER = r"[\p{L}\p{N}]"
PART = r"[\p{L}\p{N}\p{M}_\u200c\u200d]"
APOSTROPHE = "['\u2019\u02bc\uff07]"
WORD = regex.compile(rf"[\p{{L}}\p{{N}}_]{PART}*+(?:{APOSTROPHE}[\p{{L}}\p{{N}}_]{PART}*+)*+")
APOSTROPHES = regex.compile(rf"(?<={PART}){APOSTROPHE}(?=[\p{{L}}])|\u2019")

WITH_SPACE = r".!?\u2026\u0589\u203c\u2047-\u2049"
MARKS = rf"(?<![{WITH_SPACE}])[{WITH_SPACE}]++"
CLOSERS = r"[\"'\u2019\u201d\u201c\u00bb\u203a)\]}*_`~]*+"
OTHER_CLOSERS = r"[\"'\u2019\u201d\u00bb\u300d\u300f\uff09\u300b\u3011\uff02\uff07)\]}*_]*+"
END = regex.compile(
    rf"(?P<marks>{MARKS})(?P<closers>{CLOSERS})(?=\s|$)"
    rf"|(?<=\p{{Greek}})[;\u037e](?=\s|$)"
    rf"|(?P<others>(?:(?![{WITH_SPACE}])\p{{STerm}})++){OTHER_CLOSERS}"
)
NEXT = regex.compile(
    r"[^\S\n]*+\n?[^\S\n]*+[\"'\u2018\u201c\u201e\u00ab(\[{*_`]*+(?P<word>[\p{L}\p{N}][\p{L}\p{N}\p{M}']{0,20})"
)
BEFORE = regex.compile(r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}'\u2019-]|\.(?=[\p{L}\p{N}]))*+$")
EMPHASIS = "*_`~"
GOES_ON = ("\u3068", "\u3063\u3066", "\uff0c", "\u3001", ",")
"""These continue a sentence after a closing quote: Japanese particles of reported speech, and commas."""
LONGEST_ABBREVIATION = 12


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


TITLES = _set("mr mrs ms dr prof messrs mme mlle")
TITLES_WITH_CAPITAL = _set("St Mt Gen Col Lt Capt Sgt Rev Hon Gov Sen Rep")
"""A name follows; without a capital most of these are ordinary words."""
INSIDE = _set("e.g i.e eg ie v vs cf ca approx viz esp incl")
"""The sentence continues."""
BEFORE_NUMBERS = _set("no nos fig figs vol vols p pp sec ch chap eq jan feb mar apr jun jul aug sep sept oct nov dec")
"""Abbreviations only before a number; elsewhere "no" is a word."""
BEFORE_CAPITALS = _set("etc al a.m p.m")
"""The sentence ends if the next word has a capital."""
BEFORE_STARTERS = _set("inc ltd co corp jr sr dept ph.d")
"""The sentence ends only if the next word is a starter, because a name may follow."""
STARTERS = _set("he she it they we you the this that these those there then and but however so if when")
"""Capitalised, these words begin a sentence and are not names, not even after a title."""
MORE_STARTERS = STARTERS | _set(
    "a an i in on at to for from of as by with after before while because since my our your his her its their all each"
    " every some many most not no yes who what where why how is are was were do does did can will let please thus now"
)
INITIALS = regex.compile(r"\p{Lu}|\p{L}(?:\.\p{L})++")
MARK_RUN = regex.compile(r"(\p{M}{30})\p{M}++")


def plain(text: str) -> str:
    """The text with composed characters and straight apostrophes, so that equal words are equal strings."""
    bounded = MARK_RUN.sub(r"\1", text)  # composing sorts each run of marks in quadratic time
    return APOSTROPHES.sub("'", unicodedata.normalize("NFC", bounded))


def words_of(text: str) -> list[str]:
    return WORD.findall(text)


def count_word(text: str, word: str) -> int:
    """How often a whole word or phrase occurs in a text, in any case, with any white space between its parts.

    If it begins or ends with a sign, as in `C++` or `#1`, anything may be adjacent on that side.
    """
    word = plain(word).strip()
    if not word:
        return 0
    left = r"(?<![\p{L}\p{N}\p{M}])" if regex.match(LETTER, word) else ""
    right = r"(?![\p{L}\p{N}\p{M}])" if regex.search(rf"{LETTER}\p{{M}}*+$", word) else ""
    pattern = left + r"\s++".join(regex.escape(part) for part in word.split()) + right
    return len(regex.findall(pattern, plain(text), regex.IGNORECASE))


def sentences_of(text: str) -> list[str]:
    """The sentences with their marks. A sentence contains a word; the last one may lack a mark."""
    has_capitals = text != text.lower()
    sentences, start = [], 0
    for match in END.finditer(text):
        if _ends_sentence(text, match, has_capitals):
            sentences.append(text[start : match.end()])
            start = match.end()
    return [sentence.strip() for sentence in (*sentences, text[start:]) if WORD.search(sentence)]


def _ends_sentence(text: str, match: "regex.Match[str]", has_capitals: bool) -> bool:
    """Whether a mark ends a sentence, judged by the words before and after it.

    A mark after an abbreviation or an initial does not ("Dr. Smith", "No. 5", "J. Smith", "etc. and"). In a text that
    has capitals, nor does an ellipsis or a mark that closes a quote before a lower-case letter ("Stop!" he said).
    """
    if (others := match["others"]) is not None:
        goes_on = GOES_ON if match.end() > match.end("others") else ()
        is_decimal = others == "\uff0e" and text[match.end() : match.end() + 1].isdigit()
        return not is_decimal and not text.startswith(goes_on, match.end())
    following = NEXT.match(text, match.end())
    if following is None or match["marks"] is None:
        return True
    marks, closers, word = match["marks"], match["closers"], following["word"]
    closes_or_trails_off = closers.strip(EMPHASIS) or marks in ("...", "\u2026")
    if closes_or_trails_off and has_capitals and word[0].islower():
        return False
    if marks != "." or closers:
        return True
    before = BEFORE.search(text[max(0, match.start() - LONGEST_ABBREVIATION) : match.start()])
    return before is None or _ends_after(before[0], word)


def _ends_after(before: str, word: str) -> bool:
    """Whether a full stop between these two words ends a sentence."""
    short = before.casefold()
    if short in INSIDE:
        return False
    if short in BEFORE_NUMBERS:
        return not word[0].isdigit()
    if short in BEFORE_CAPITALS:
        return word[0].isupper()
    starter = word.casefold() if word[0].isupper() else ""
    if short in TITLES or before in TITLES_WITH_CAPITAL:
        return starter in STARTERS
    if short in BEFORE_STARTERS or (before != "I" and INITIALS.fullmatch(before)):
        return starter in MORE_STARTERS
    return True
