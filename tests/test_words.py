"""Words and sentences: abbreviations, quotes, other scripts' full stops, marks and apostrophes. Counted by hand."""

import unicodedata

import pytest

from rewards.words import count_word, plain, sentences_of, words_of


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Hello there. How are you? Fine!", 3),
        ("One.\n\nTwo.\nThree", 3),
        ("!!! ??? ...", 0),
        ("Read www.x.com, file.txt and 3.5 now. Yes", 2),
        # "no" is a word, and an abbreviation before a number only
        ("He said no. She left.", 2),
        ("NO. I WILL NOT.", 2),
        ("See No. 5. It is good.", 2),
        ("It is in fig. 3 on p. 7 of vol. 2.", 1),
        ("We met on Jan. 5 and left in March.", 1),
        # titles, initials, acronyms
        ("Dr. Smith met Mr. and Mrs. Jones.", 1),
        ("dr. smith met mr. jones.", 1),
        ("He is in St. Louis. Then he left.", 2),
        ("I did one more rep. Jim left.", 2),
        ("I am. Peter is not.", 2),
        ("J. R. R. Tolkien wrote it. I read it.", 2),
        ("It was I. He left.", 2),
        ("Plan B. Then plan C.", 2),
        ("IT'S. NEVER MIND.", 2),
        ("The U.S. Army came.", 1),
        ("Brown v. Board of Education was long.", 1),
        ("I live in the U.S. It is big.", 2),
        ("He came at 5 p.m. Then he slept.", 2),
        ("Dr. Who came, e.g. at 3.5 p.m. today... Really?! Yes.", 3),
        ("Apples, pears, etc. and more. Fine.", 2),
        ("Apples, pears, etc. They are good.", 2),
        ("Apple Inc. is big. I work at Apple Inc. The end.", 3),
        ("See example.com. Bar is open.", 2),
        # quotes, brackets and emphasis that close after the mark
        ('He said "Stop." Then he left.', 2),
        ('She said "No." He said "Yes." They left.', 3),
        ("She said \u201cNo.\u201d He said \u2018Yes.\u2019 They left.", 3),
        ("Er sagte \u201eNein.\u201c Sie ging.", 2),
        ("Il dit \u00ab oui. \u00bb Elle part.", 2),
        ('"Stop!" he said. Then he left.', 2),
        ('he said "stop." then he left.', 2),
        ('"No!", he said.', 1),
        ("(The first.) The second.", 2),
        ("**Bold.** Next one.", 2),
        # an ellipsis that goes on
        ("Wait... what? Yes.", 2),
        ("Wait\u2026 What?", 2),
        # other scripts
        ("\u6211\u559c\u6b22\u6570\u5b66\u3002\u6211\u559c\u6b22\u7269\u7406\u3002", 2),
        ("\u4ed6\u8bf4\uff1a\u201c\u505c\u3002\u201d\u7136\u540e\u4ed6\u8d70\u4e86\u3002", 2),
        ("\u4f60\u597d\uff1f\u597d\uff01\u597d\u3002", 3),
        ("\u300c\u306f\u3044\u3002\u300d\u3068\u8a00\u3063\u305f\u3002\u7d42\u308f\u308a\u3002", 2),
        ("\uff11\uff0e\uff15\u3067\u3059\u3002\u306f\u3044\uff0e", 2),
        ("\u0935\u0939 \u0917\u092f\u093e\u0964 \u092e\u0948\u0902 \u0906\u092f\u093e\u0964", 2),
        ("\u06cc\u06c1 \u0627\u0686\u06be\u0627 \u06c1\u06d2\u06d4 \u0648\u06c1 \u06af\u06cc\u0627\u06d4", 2),
        ("\u0643\u064a\u0641 \u062d\u0627\u0644\u0643\u061f \u062c\u064a\u062f.", 2),
        ("\u03a4\u03b9 \u03ba\u03ac\u03bd\u03b5\u03b9\u03c2; \u039a\u03b1\u03bb\u03ac.", 2),
        ("\u1019\u103c\u1014\u103a\u1019\u102c\u104b \u1005\u102c\u104b", 2),
        ("\u12a0\u1260\u1260\u1362 \u1260\u120b\u1362", 2),
    ],
)
def test_sentences_are_counted_as_a_reader_does(text: str, number: int) -> None:
    assert len(sentences_of(text)) == number, sentences_of(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("one two three", 3),
        ("don't stop, don\u2019t, don\u02bct", 4),
        ("'quoted' words'", 2),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902", 2),
        ("\u0ba4\u0bae\u0bbf\u0bb4\u0bcd \u0bae\u0bca\u0bb4\u0bbf", 2),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", 1),
        ("\u0645\u064f\u062d\u064e\u0645\u064e\u0651\u062f", 1),
        (unicodedata.normalize("NFD", "na\u00efve caf\u00e9"), 2),
        ("snake_case 3rd \u00bd", 3),
        ("\u0301 - * !", 0),
    ],
)
def test_words_are_not_cut_at_marks_and_apostrophes(text: str, number: int) -> None:
    assert len(words_of(text)) == number, words_of(text)


@pytest.mark.parametrize(
    ("text", "word", "number"),
    [
        ("We used C++ and c++.", "C++", 2),
        ("The #1 thing, not #12.", "#1", 1),
        ("C# and F#", "C#", 1),
        (".NET, ASP.NET", ".NET", 2),
        ("50% of it, or 50 %", "50%", 1),
        ("cats category", "cat", 0),
        ("_cat_ *cat* (cat) cat's", "cat", 4),
        ("I don\u2019t and don't", "don't", 2),
        ("I don't", "don\u2019t", 1),
        ("New\nYork and new  york", "New York", 2),
        (unicodedata.normalize("NFD", "na\u00efve"), "na\u00efve", 1),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u093f\u0928\u094d\u0926", 0),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902", "\u0939\u093f\u0928\u094d\u0926\u0940", 1),
        ("co-operate", "co-operate", 1),
        ("a", "", 0),
    ],
)
def test_whole_words_are_found_with_their_signs(text: str, word: str, number: int) -> None:
    assert count_word(text, word) == number


def test_equal_words_become_equal_strings() -> None:
    assert plain("don\u2019t") == plain("don\u02bct") == "don't"
    assert plain(unicodedata.normalize("NFD", "caf\u00e9")) == "caf\u00e9"
    assert len(plain("e" + "\u0301\u0316" * 1000)) <= 31
