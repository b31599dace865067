"""Which language is a text written in? The script names the candidates, a trained model chooses among them.

The model is py3langid's (naive Bayes over byte n-grams; Lui & Baldwin 2012, "langid.py", ACL demos). Its wheel holds
it, so nothing is downloaded; it is deterministic, and time grows with the length of the text and no faster. Languages
are ISO 639-1 codes: the 30 of IFEval and others of the same scripts, so that a text in one of those is not taken for
one of the 30.
"""

import functools
from collections import Counter

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from rewards.words import plain

CANDIDATES = {
    "Latin": "en es pt fr de it pl vi sw fi nl sv da no is cs sk ro hu hr sl et lv lt tr az id ms tl ca eu gl sq cy ga"
    " af",
    "Cyrillic": "ru uk bg be sr mk kk ky mn",
    "Arabic": "ar fa ur ps ug ku",
    "Devanagari": "hi mr ne",
    "Bengali": "bn as",
    "Hebrew": "he",
    "Thai": "th",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Gujarati": "gu",
    "Gurmukhi": "pa",
    "Hangul": "ko",
    "Han": "zh ja",
    "Greek": "el",
    "Georgian": "ka",
    "Armenian": "hy",
    "Sinhala": "si",
    "Khmer": "km",
    "Lao": "lo",
    "Myanmar": "my",
    "Oriya": "or",
    "Ethiopic": "am",
}
"""Languages by Unicode script. Japanese is first told by its kana."""


def _codes(text: str) -> list[str]:
    return text.split()


LANGUAGES = frozenset(_codes(" ".join(CANDIDATES.values())))
SCRIPTS = regex.compile(
    r"(?P<Kana>[\p{Hiragana}\p{Katakana}])|" + "|".join(rf"(?P<{name}>\p{{{name}}})" for name in CANDIDATES)
)
IFEVAL = frozenset(_codes("en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"))
PRIOR = 6.0
"""Nats by which these are likelier than the others before a text is read."""
MARGIN = 3.0
"""Nats within which two languages are one as good as the other: "le chat dort ici" may be English by its letters.

With both, 98.3 % of 952 English phrases of three to eight words pass for English, 97.8 % of 1,600 texts of the first
four words of a sentence in eight other languages in Latin letters pass for theirs, and 1.7 % of those for English.
"""
MIN_SHARE = 1 / 3
"""A text with more of its letters in a script other than Latin is in that script's language, names in Latin or not."""
MIN_KANA = 0.05
"""Chinese has no kana, and Japanese a few even in its most formal texts: their least share among Han and kana."""


def is_written_in(text: str, language: str) -> bool:
    """Whether the language is the text's, or as likely as the likeliest, which happens for a few words only.

    A region after the code (`zh-cn`) is not looked at. Raises `ValueError` for a language that no text would pass for.
    """
    language = language.lower().split("-")[0]
    if language not in LANGUAGES:
        raise ValueError(f"the language {language!r} cannot be recognised; codes: {', '.join(sorted(LANGUAGES))}")
    scores = _scores(text)
    return language in scores and scores[language] >= max(scores.values()) - MARGIN


def _scores(text: str) -> dict[str, float]:
    """Log-likelihoods up to a constant, in nats, of the languages that the text's script leaves."""
    languages = _languages_by_script(text)
    if len(languages) < 2:
        return dict.fromkeys(languages, 0.0)
    ranked = dict(_model().rank(plain(text).lower()))
    return {language: ranked[language] + PRIOR * (language in IFEVAL) for language in languages}


def _languages_by_script(text: str) -> list[str]:
    scripts = Counter(str(match.lastgroup) for match in SCRIPTS.finditer(text))
    kana, total = scripts.pop("Kana", 0), scripts.total()
    if not total + kana:
        return []
    if kana > MIN_KANA * (kana + scripts["Han"]) and kana + scripts["Han"] > MIN_SHARE * (total + kana):
        return ["ja"]
    foreign = [(num, name) for name, num in scripts.items() if name != "Latin" and num > MIN_SHARE * (total + kana)]
    return _codes(CANDIDATES[max(foreign)[1] if foreign else "Latin"])


@functools.cache
def _model() -> LanguageIdentifier:
    """Loaded by the first text that needs it: half a second, 100 MB."""
    return LanguageIdentifier.from_model_file(MODEL_FILE)
