"""English texts as word error rates compare them: Whisper's normaliser, by its own examples and beside a peer."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from headway.errors import UserError
from headway.metrics import word_error_rate
from headway.metrics.error_rates import english_normalizer, english_words

WORDS = (
    "one two three oh zero twenty thirty hundred thousand million and a half point double triple dollars cents percent "
    "per cent minus first second thirds nineties 3 14 2.5 $5 £3.20 b747 10th mr. he's been won't colour (laughs) [x] "
    "uh 1,000 naïve -5 +7 ones 1 1s five sixth hundredth millions pounds euro kinda "
    "cause dunno sorta"
)


def test_the_published_pairs(data_dir: Path) -> None:
    numbers = pytest.importorskip("whisper_normalizer.english").EnglishNumberNormalizer()
    pairs = json.loads((data_dir / "speech/whisper_normalizer_pairs.json").read_text(encoding="utf-8"))
    assert len(pairs) == 60
    for kind, given, wanted in pairs:
        found = numbers(given) if kind == "test_number_normalizer" else english_words(given)
        assert found == wanted, given


def test_texts_of_all_kinds_beside_transformers(data_dir: Path) -> None:
    """The package writes out more contractions than were published."""
    pytest.importorskip("whisper_normalizer")
    module = pytest.importorskip("transformers.models.whisper.english_normalizer")
    spelling = json.loads((data_dir / "speech/whisper_english_spelling.json").read_text(encoding="utf-8"))
    theirs, draw = module.EnglishTextNormalizer(spelling), random.Random(0)
    for _ in range(500):
        text = " ".join(draw.choice(WORDS.split()) for _ in range(draw.randint(1, 8)))
        assert english_words(text) == theirs(text).strip(), text


def test_rates_are_those_of_jiwer() -> None:
    jiwer, draw = pytest.importorskip("jiwer"), random.Random(1)
    said, found = (
        [" ".join(draw.choices(WORDS.split()[:9], k=draw.randint(1, 9))) for _ in range(20)] for _ in range(2)
    )
    ours = word_error_rate(found, [[text] for text in said])["wer"]
    assert ours == pytest.approx(jiwer.wer(said, found))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", None)
    english_normalizer.cache_clear()
    with pytest.raises(UserError, match="whisper-normalizer"):
        english_words("a text")
    english_normalizer.cache_clear()
