"""Languages are told apart by script and common words; what is mixed or says nothing is none."""

from __future__ import annotations

import pytest

from palestra.verifiers.instructions import Constraint
from palestra.verifiers.instructions.language import LANGUAGES, detect

SENTENCES = {
    "ar": "لا يمكن أن يكون هذا هو الجواب، لأن السؤال كان عن شيء آخر.",
    "bg": "Това не е отговорът, който търсим, защото въпросът беше за нещо друго.",
    "bn": "এটি সঠিক উত্তর নয়, কারণ প্রশ্নটি অন্য কিছু নিয়ে ছিল।",
    "cs": "To není odpověď, kterou hledáme, protože otázka byla o něčem jiném.",
    "da": "Det er ikke det svar, som vi leder efter, fordi spørgsmålet var om noget andet.",
    "de": "Das ist nicht die Antwort, die wir suchen, weil die Frage eine andere war.",
    "el": "Αυτή δεν είναι η απάντηση που ψάχνουμε.",
    "en": "This is not the answer that we are looking for, because the question was another.",
    "es": "Esta no es la respuesta que buscamos, porque la pregunta era sobre otra cosa.",
    "fa": "این پاسخی نیست که ما به دنبال آن هستیم، چون پرسش درباره چیز دیگری بود.",
    "fi": "Tämä ei ole se vastaus, jota me etsimme, koska kysymys oli aivan toinen.",
    "fr": "Ce n'est pas la réponse que nous cherchons, parce que la question était une autre.",
    "gu": "આ સાચો જવાબ નથી, કારણ કે પ્રશ્ન બીજા વિશે હતો.",
    "he": "זאת לא התשובה שאנחנו מחפשים.",
    "hi": "यह वह उत्तर नहीं है जो हम चाहते हैं, क्योंकि सवाल कुछ और था।",
    "hu": "Ez nem az a válasz, amelyet keresünk, mert a kérdés egy másik volt.",
    "hy": "Սա այն պատասխանը չէ, որը մենք փնտրում ենք։",
    "id": "Ini bukan jawaban yang kita cari, karena pertanyaan itu adalah tentang hal lain.",
    "it": "Questa non è la risposta che cerchiamo, perché la domanda era un'altra.",
    "ja": "これは私たちが探している答えではありません。",
    "ka": "ეს არ არის პასუხი, რომელსაც ვეძებთ.",
    "kn": "ಇದು ನಾವು ಹುಡುಕುತ್ತಿರುವ ಉತ್ತರವಲ್ಲ.",
    "ko": "이것은 우리가 찾는 답이 아닙니다.",
    "ml": "ഇത് ഞങ്ങൾ തിരയുന്ന ഉത്തരമല്ല.",
    "mr": "हे उत्तर नाही, कारण प्रश्न वेगळा होता आणि आम्ही ते शोधत आहे.",
    "ne": "यो हामीले खोजेको उत्तर होइन, किनभने प्रश्न अर्कै थियो र यस मा धेरै छ।",
    "nl": "Dit is niet het antwoord dat we zoeken, omdat de vraag een andere was.",
    "pa": "ਇਹ ਉਹ ਜਵਾਬ ਨਹੀਂ ਹੈ ਜੋ ਅਸੀਂ ਲੱਭ ਰਹੇ ਹਾਂ।",
    "pl": "To nie jest odpowiedź, której szukamy, bo pytanie było o coś innego.",
    "pt": "Esta não é a resposta que procuramos, porque a pergunta era sobre outra coisa.",
    "ro": "Acesta nu este răspunsul pe care îl căutăm, pentru că întrebarea a fost alta.",
    "ru": "Это не тот ответ, который мы ищем, потому что вопрос был о другом.",
    "si": "මෙය අප සොයන පිළිතුර නොවේ.",
    "sv": "Det är inte det svar som vi letar efter, eftersom frågan var en annan.",
    "sw": "Hili si jibu ambalo tunatafuta, kwa sababu swali lilikuwa ni la kitu kingine.",
    "ta": "இது நாம் தேடும் பதில் அல்ல.",
    "te": "ఇది మనం వెతుకుతున్న సమాధానం కాదు.",
    "th": "นี่ไม่ใช่คำตอบที่เรากำลังมองหา",
    "tr": "Bu bizim için doğru cevap değil, çünkü soru daha önce başka bir şey için oldu.",
    "uk": "Це не та відповідь, яку ми шукаємо, бо питання було про інше.",
    "ur": "یہ وہ جواب نہیں ہے جو ہم چاہتے ہیں، کیونکہ سوال کچھ اور تھا۔",
    "vi": "Đây không phải là câu trả lời mà chúng tôi đang tìm.",
    "zh": "这不是我们要找的答案。",
}


def test_every_language_has_an_example() -> None:
    assert set(SENTENCES) == set(LANGUAGES)
    assert len(LANGUAGES) >= 12


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_in_its_language_and_in_no_other(language: str) -> None:
    assert detect(SENTENCES[language]).language == language
    for other, sentence in SENTENCES.items():
        constraint = Constraint("language:response_language", {"language": language})
        assert bool(constraint.check(sentence)) == (other == language), (language, other)


@pytest.mark.parametrize(
    "text",
    ["", "42", "xyz", "Rome, Paris", "*** 😀", "lorem dolor", "这是 the mixed text of it ответ"],
)
def test_what_tells_nothing_is_in_no_language(text: str) -> None:
    assert detect(text).language == ""
    for language in LANGUAGES:
        assert not Constraint("language:response_language", {"language": language}).check(text)


def test_capitals_are_read_as_small_letters() -> None:
    assert detect(SENTENCES["fr"].upper()).language == "fr"


def test_code_and_names_in_another_script_do_not_count() -> None:
    punjabi = Constraint("language:response_language", {"language": "Punjabi"})
    assert punjabi.check(
        f"{SENTENCES['pa']} (Python)\n```python\nfor i in range(10): print(i)\n```"
    )
    assert not punjabi.check(f"{SENTENCES['pa']}\n{SENTENCES['en']}")


def test_a_paragraph_in_another_language_is_found() -> None:
    spanish = Constraint("language:response_language", {"language": "es"})
    verdict = spanish.check("\n".join([SENTENCES["es"]] * 5 + [SENTENCES["fr"]]))
    assert not verdict
    assert verdict.explanation == "partly in fr, not es"
    assert spanish.check(f"{SENTENCES['es']}\n«Ce n'est pas la réponse»")
