# ruff: noqa: RUF001 (letters of other scripts)
"""Languages: all 30 of IFEval, short texts, neighbours of one script, scripts that decide alone."""

import pytest

from rewards.instructions import Instruction, follows_strictly
from rewards.language import IFEVAL, LANGUAGES, is_written_in

SENTENCES = {
    "en": "Every morning I walk in the garden.",
    "es": "Cada mañana camino por el jardín.",
    "pt": "Todas as manhãs eu caminho pelo jardim.",
    "ar": "أمشي في الحديقة كل صباح.",
    "hi": "मैं हर सुबह बगीचे में टहलता हूँ।",
    "fr": "Chaque matin, je marche dans le jardin.",
    "ru": "Каждое утро я гуляю в саду.",
    "de": "Jeden Morgen gehe ich im Garten spazieren.",
    "ja": "毎朝、庭を散歩します。",
    "it": "Ogni mattina cammino nel giardino.",
    "bn": "আমি প্রতিদিন সকালে বাগানে হাঁটি।",
    "uk": "Щоранку я гуляю в саду.",
    "th": "ฉันเดินในสวนทุกเช้า",
    "ur": "میں ہر صبح باغ میں چہل قدمی کرتا ہوں۔",
    "ta": "நான் தினமும் காலையில் தோட்டத்தில் நடக்கிறேன்.",
    "te": "నేను ప్రతి ఉదయం తోటలో నడుస్తాను.",
    "bg": "Всяка сутрин се разхождам в градината.",
    "ko": "나는 매일 아침 정원을 걷습니다.",
    "pl": "Każdego ranka spaceruję po ogrodzie.",
    "he": "אני הולך בגינה בכל בוקר.",
    "fa": "من هر روز صبح در باغ قدم می‌زنم.",
    "vi": "Mỗi sáng tôi đi dạo trong vườn.",
    "ne": "म हरेक बिहान बगैंचामा हिँड्छु।",
    "sw": "Kila asubuhi mimi hutembea bustanini.",
    "kn": "ನಾನು ಪ್ರತಿದಿನ ಬೆಳಿಗ್ಗೆ ತೋಟದಲ್ಲಿ ನಡೆಯುತ್ತೇನೆ.",
    "mr": "मी दररोज सकाळी बागेत फिरतो.",
    "gu": "હું દરરોજ સવારે બગીચામાં ચાલું છું.",
    "pa": "ਮੈਂ ਹਰ ਰੋਜ਼ ਸਵੇਰੇ ਬਾਗ ਵਿੱਚ ਤੁਰਦਾ ਹਾਂ।",
    "ml": "ഞാൻ എല്ലാ ദിവസവും രാവിലെ തോട്ടത്തിൽ നടക്കുന്നു.",
    "fi": "Joka aamu kävelen puutarhassa.",
}


def test_there_is_a_sentence_of_each_of_the_30_languages() -> None:
    assert set(SENTENCES) == IFEVAL <= LANGUAGES
    assert len(SENTENCES) == 30


@pytest.mark.parametrize("language", SENTENCES)
def test_each_of_the_30_languages_passes_and_no_other(language: str) -> None:
    accepted = [other for other in SENTENCES if is_written_in(SENTENCES[language], other)]
    assert accepted == [language]


@pytest.mark.parametrize(
    "text",
    [
        *("a dog saw a cat.", "i like you. no rain, no bees.", "yes yes", "the sea", "my red hat is old.", "we ran."),
        *("birds sing at dawn.", "no one came home.", "snow fell all night.", "sun, sea and sand.", "he is a cook."),
    ],
)
def test_short_english_is_english_in_both_cases(text: str) -> None:
    assert follows_strictly(text, Instruction("change_case:english_lowercase"))
    assert follows_strictly(text.upper(), Instruction("change_case:english_capital"))


@pytest.mark.parametrize(
    "text", ["wir fahren morgen nach berlin.", "el perro duerme en la casa.", "le chat est dans la maison."]
)
def test_other_languages_are_not_english(text: str) -> None:
    assert not follows_strictly(text, Instruction("change_case:english_lowercase"))


def languages_of(text: str) -> list[str]:
    return [language for language in sorted(LANGUAGES) if is_written_in(text, language)]


def test_scripts_and_neighbours() -> None:
    texts = (
        "La mer et le vent",
        "海は青い",
        "我喜欢学习数学。",
        "Ελλάδα",
        "東京大学入学試験問題について",
        "한국어 漢字",
    )
    assert [languages_of(text) for text in texts] == [["fr"], ["ja"], ["zh"], ["el"], ["ja"], ["ko"]]
    assert languages_of("De hond loopt elke ochtend in de tuin.") == ["nl"]
    assert languages_of("Я люблю Python и пишу на нём каждый день.") == ["ru"]
    assert languages_of("1 2 3 !") == []
    assert is_written_in("我喜欢学习数学。", "zh-cn")


def test_a_language_that_no_text_can_pass_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="the language 'xx' cannot be recognised; codes: af, am,"):
        is_written_in("text", "xx")
