"""One thing in, one answer out; many in, a list; and what is neither is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import headway as hw
from headway.app.model import Model
from headway.app.recipes import _applicable_settings
from headway.codecs import train_codec
from headway.config import override
from headway.domains import audio, recipe
from headway.errors import ConfigError, UserError
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.generate import Limits, Sampling, SearchConfig
from headway.io import arguments
from headway.nn.models import PooledHeadConfig, VocabularyHeadConfig, build
from headway.nn.models.presets import preset
from processes import Program

SIZES = {"width": 16, "depth": 1, "heads": 2, "context": 64}
GREEDY, FEW = Sampling(temperature=0), Limits(4, ignore_end=True)


@pytest.fixture(scope="module")
def model() -> Model:
    """A small language model as it is drawn."""
    codec = train_codec("byte", iter(["a text"]))
    module = build(override(preset("gpt2"), {**SIZES, "symbols": codec.vocab_size}), seed=1)
    return Model(OpenedModel(module, Usage(), codec), Path("drawn"), backend="torch")


@pytest.fixture(scope="module")
def encoder() -> Model:
    codec = train_codec("byte", iter(["a text"]))
    config: Any = override(preset("bert-base"), {**SIZES, "symbols": codec.vocab_size})
    heads = {
        "vocabulary": VocabularyHeadConfig(),
        "classes": PooledHeadConfig(2),
        "tags": PooledHeadConfig(2, pool="tokens"),
    }
    module = build(replace(config, heads={**config.heads, **heads}), seed=1)
    return Model(OpenedModel(module, Usage(), codec), Path("drawn"), backend="torch")


class Column(list):
    """What pandas and polars call a Series: an iterable that is no list to its users."""


@pytest.mark.parametrize(
    "many",
    [
        ["ab", "c"],
        ("ab", "c"),
        iter(["ab", "c"]),
        np.array(["ab", "c"]),
        np.array(["ab", "c"], object),
        Column(["ab", "c"]),
    ],
    ids=["list", "tuple", "iterator", "array", "objects", "column"],
)
def test_texts_of_any_iterable(many: Any) -> None:
    found = arguments.text_inputs(many)
    assert (found.items, found.is_single) == (["ab", "c"], False)
    assert found.unwrap([1, 2]) == [1, 2]


def test_one_of_each_kind() -> None:
    pixels, sound = np.zeros((4, 5, 3), np.uint8), np.zeros(7, np.float32)
    for found in (
        arguments.text_inputs("ab"),
        arguments.text_or_pair_inputs(("ab", "c")),
        arguments.text_or_word_inputs("ab"),
        arguments.image_inputs("a.png"),
        arguments.image_inputs(Path("a.png")),
        arguments.image_inputs(pixels),
        arguments.image_inputs(torch.zeros(4, 5, dtype=torch.uint8)),
        arguments.audio_inputs("a.wav"),
        arguments.audio_inputs(sound),
        arguments.audio_inputs(torch.zeros(7, 2)),
        arguments.audio_inputs([0.5, 0.25]),
        arguments.id_row_inputs([1, 2]),
        arguments.id_row_inputs(np.array([1, 2])),
    ):
        assert found.is_single
        assert len(found.items) == 1
        assert found.unwrap(["answer"]) == "answer"
    assert arguments.id_row_inputs(np.array([3, 1])).items == [[3, 1]]


def test_many_of_each_kind() -> None:
    pixels, sound = np.zeros((2, 4, 5, 3), np.uint8), np.zeros(7, np.float32)
    for found in (
        arguments.text_or_pair_inputs(["ab", "c"]),
        arguments.text_or_pair_inputs([("ab", "c"), ("d", "e")]),
        arguments.text_or_word_inputs([["ab", "c"], "d"]),
        arguments.image_inputs(pixels),
        arguments.image_inputs(["a.png", pixels[0]]),
        arguments.image_inputs(("a.png", "b.png")),
        arguments.audio_inputs([sound, "a.wav"]),
        arguments.audio_inputs([[0.5, 0.25], [0.5]]),
        arguments.id_row_inputs([[1, 2], (3,)]),
        arguments.id_row_inputs(torch.ones(2, 3, dtype=torch.long)),
    ):
        assert not found.is_single
        assert len(found.items) == 2


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: arguments.text_inputs(3), "the input is 3; pass a text, or a list of these"),
        (lambda: arguments.text_inputs(None), "the input is None"),
        (lambda: arguments.text_inputs(b"ab"), "the input is b'ab'"),
        (lambda: arguments.text_inputs({"ab"}), "the input is a set"),
        (lambda: arguments.text_inputs({"text": "ab"}), "the input is a dict"),
        (lambda: arguments.text_inputs(np.array("ab")), "the input is a ndarray"),
        (lambda: arguments.text_inputs(["ab", float("nan")]), "text 2 of 2 is nan; pass a text as str"),
        (lambda: arguments.text_inputs(SimpleNamespace(columns=["a"])), "has several columns; pass one of them"),
        (
            lambda: arguments.text_or_pair_inputs([("a", "b", "c")]),
            "text 1 is a tuple; pass strings, or tuples of two strings",
        ),
        (lambda: arguments.text_or_word_inputs([["ab", 3]]), "text 1: word 2 of 2 is 3"),
        (lambda: arguments.image_inputs(3), "the input is 3; pass an image"),
        (lambda: arguments.audio_inputs([0.5, "a"]), "sample 2 of 2 is 'a'; pass samples as numbers"),
        (lambda: arguments.id_row_inputs("ab"), "the input is 'ab'; pass a list of ids"),
        (lambda: arguments.id_row_inputs([[1, 0.5]]), "id 2 of 2 is 0.5; pass ids as integers"),
    ],
)
def test_what_is_neither_is_one_line(ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(hw.UserError) as caught:
        ask()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_language_model_takes_one_or_many(model: Model) -> None:
    how: Any = {"max_new_tokens": 4, "temperature": 0}
    alone = model.generate("a text", **how)
    assert isinstance(alone, str)
    assert model.generate(["a text", "e"], **how) == [alone, model.generate("e", **how)]
    assert model.generate(iter(["a text"]), **how) == [alone]
    assert model.complete("a text", GREEDY, FEW).ids == model.complete(["a text"], GREEDY, FEW)[0].ids
    assert model.score("a text") == model.score(["a text"])[0]
    ids = model.prompt_ids("a text")
    assert model.generate_ids(ids, 4, 0, ignore_end=True) == model.generate_ids([ids], 4, 0, ignore_end=True)[0]
    for nothing in (model.generate([]), model.complete([]), model.score([]), model.generate_ids([])):
        assert nothing == []


def test_an_encoder_takes_one_or_many(encoder: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    vector = encoder.embed("a text")
    assert vector.shape == (16,)
    torch.testing.assert_close(encoder.embed(np.array(["a text", "e"]))[0], vector, rtol=1e-5, atol=1e-6)
    assert encoder.embed([]).shape == (0, 16)
    alone = encoder.classify("a text")
    assert set(alone) == {"LABEL_0", "LABEL_1"}
    assert encoder.classify(["a text", "e"]) == [pytest.approx(alone), pytest.approx(encoder.classify("e"))]
    pair = encoder.classify(("a text", "e"))
    assert set(pair) == set(alone)
    assert encoder.classify([("a text", "e")]) == [pytest.approx(pair)]
    assert pair != alone
    assert encoder.classify([]) == []
    assert encoder.tag("a text").words == ["a", "text"]
    assert [words for words, *_ in encoder.tag([["a", "t e"], "x"])] == [["a", "t e"], ["x"]]
    monkeypatch.setattr("headway.domains.masked.predictors.fill_one", lambda module, codec, text, top: [text, top])
    assert encoder.fill("abc", 2) == ["abc", 2]
    assert encoder.fill(["abc", "d"], 2) == [["abc", 2], ["d", 2]]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Sampling(temperature="hot"), "temperature is 'hot'; pass a number"),  # type: ignore[arg-type]
        (lambda: Sampling(top_k=2.5), "top_k is 2.5; pass an integer or None"),  # type: ignore[arg-type]
        (lambda: Sampling(seed=True), "seed is True; pass an integer or None"),
        (lambda: Limits("3"), "max_new_tokens is '3'; pass an integer"),  # type: ignore[arg-type]
        (lambda: Limits(stop=["a", 3]), "stop is a list; use a tuple of strings"),  # type: ignore[arg-type]
        (lambda: SearchConfig(beam="4"), "beam is '4'; pass an integer"),  # type: ignore[arg-type]
        (lambda: audio.TranscriptionOptions(words="no"), "words is 'no'; pass True or False"),  # type: ignore[arg-type]
        (lambda: hw.train("text", "a.txt", minutes="3"), "minutes is '3'; pass a number or None"),  # type: ignore[arg-type]
        (lambda: hw.train("text", "a.txt", threads=0), "threads is 0; use a number of at least 1"),
        (lambda: hw.plan("text", "a.txt", threads=-1), "threads is -1; use a number of at least 1"),
        (lambda: hw.plan("text", "a.txt", minutes=[]), "minutes is empty; pass at least one number"),
        (lambda: hw.train("text", "a.txt", seed=1.5), "seed is 1.5; pass an integer or None"),  # type: ignore[arg-type]
        (lambda: hw.train("text", "a.txt", set=["a"]), "set is a list; pass a mapping"),  # type: ignore[arg-type]
        (lambda: hw.train(3), "recipe is 3; pass a string, a path or a Recipe"),  # type: ignore[arg-type]
        (lambda: hw.load(None), "path is None; pass a string or a path"),  # type: ignore[arg-type]
        (lambda: hw.load("a", weights=8), "weights is 8; pass a string or None"),  # type: ignore[arg-type]
        (lambda: hw.train("text", "a.txt", {"train.steps": "x"}), "train.steps is 'x'; use an integer"),
    ],
)
def test_arguments_of_other_types_are_one_line(ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(hw.UserError) as caught:
        ask()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_verbs_are_checked(model: Model) -> None:
    ask: Any = model
    for call, message in (
        (lambda: ask.generate("a", temperature="hot"), "temperature is 'hot'"),
        (lambda: ask.generate("a", stop=3), "the input is 3; pass a stop, or a list of these"),
        (lambda: ask.stream(["a"]), "prompt is a list; pass a string"),
        (lambda: ask.complete("a", 0.7), "sampling is 0.7; pass a Sampling"),
        (lambda: ask.translate("a", beam="4"), "is a language model, which cannot translate; use generate or embed"),
        (lambda: ask.chat(3), "3 is not a conversation; pass a string, or messages as"),
        (lambda: ask.chat(["hi"]), "a list is not a conversation"),
        (lambda: ask.attention(["a"]), "text is a list; pass a string"),
    ):
        with pytest.raises(hw.UserError) as caught:
            call()
        assert message in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Sampling(np.float32(0.5), np.int64(3)).top_k == 3  # type: ignore[arg-type]


FORKED = """
import os, sys
import torch
import headway as hw
from headway.io import arguments

torch.set_num_threads(2)
torch.mm(torch.ones(900, 900), torch.ones(900, 900))
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    hw.load("nowhere")
except hw.UserError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_process_forked_beside_threads_says_so(tmp_path: Path) -> None:
    said, _ = Program(tmp_path, FORKED).wait()
    assert "was forked after torch started threads" in said
    assert "get_context('spawn')" in said


def test_what_cannot_be_a_path_or_a_text_is_refused_in_a_line(tmp_path: Path) -> None:
    for data in ("~nobody-here/a.txt", "x" * 5000):
        with pytest.raises(UserError, match=r"an unknown user name|cannot be reached \(File name too long\)"):
            hw.train("text", data=data, run=tmp_path / "run")
    with pytest.raises(UserError, match=r"text 2 of 2 is 'a\\udcff', which is not valid Unicode; decode it as UTF-8"):
        arguments.text_inputs(["b", "a\udcff"])


def test_a_setting_that_another_replaced_is_no_hindrance_to_resume() -> None:
    base, settings = recipe("shakespeare"), {"model.heads": 2, "model.mixer": "lstm"}
    found = override(base, settings)
    assert _applicable_settings(found, base, settings) == {"model.mixer": "lstm"}
    assert _applicable_settings(found, base, {"train.steps": 5}) == {"train.steps": 5}
    with pytest.raises(ConfigError, match="no setting 'headz'"):
        _applicable_settings(found, base, {"model.headz": 2})
