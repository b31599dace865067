"""Which language is a text written in? The script determines the candidates, and a trained model chooses among them.

The model is py3langid's (naive Bayes over byte n-grams; Lui & Baldwin 2012, "langid.py", ACL demos). Its wheel contains
the model, so nothing is downloaded. It is deterministic and takes linear time. Languages are ISO 639-1 codes: the 30 of
IFEval and others of the same scripts, so that a text in one of the others is not taken for one of the 30.
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
"""Languages by Unicode script. Japanese is first recognised by its kana."""


def _codes(text: str) -> list[str]:
    return text.split()


LANGUAGES = frozenset(_codes(" ".join(CANDIDATES.values())))
SCRIPTS = regex.compile(
    r"(?P<Kana>[\p{Hiragana}\p{Katakana}])|" + "|".join(rf"(?P<{name}>\p{{{name}}})" for name in CANDIDATES)
)
IFEVAL = frozenset(_codes("en es pt ar hi fr ru de ja it bn uk th ur ta te bg ko pl he fa vi ne sw kn mr gu pa ml fi"))
PRIOR = 6.0
"""Nats by which these languages are likelier than the others before a text is read."""
MARGIN = 3.0
"""Languages within this many nats count as equally likely: "le chat dort ici" may be English by its letters.

With both constants, 98.3 % of 952 English phrases of three to eight words pass for English. Of 1,600 texts of the first
four words of a sentence in eight other Latin-script languages, 97.8 % pass for theirs and 1.7 % for English.
"""
MIN_SHARE = 1 / 3
"""A text with a larger share of non-Latin letters is in their script's language, even if it has Latin names."""
MIN_KANA = 0.05
"""Minimum share of kana among Han and kana in Japanese. Even its most formal texts have a few; Chinese has none."""


def is_written_in(text: str, language: str) -> bool:
    """Whether the language is the likeliest for the text, or as likely as that, which happens only for a few words.

    A region after the code (`zh-cn`) is ignored. Raises `ValueError` for a language that cannot be recognised.
    """
    language = language.lower().split("-")[0]
    if language not in LANGUAGES:
        raise ValueError(f"the language {language!r} cannot be recognised; codes: {', '.join(sorted(LANGUAGES))}")
    scores = _scores(text)
    return language in scores and scores[language] >= max(scores.values()) - MARGIN


def _scores(text: str) -> dict[str, float]:
    """Log-likelihoods up to a constant, in nats, of the candidate languages of the text's script."""
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
    """Loaded for the first text that needs it: half a second, 100 MB."""
    return LanguageIdentifier.from_model_file(MODEL_FILE)
