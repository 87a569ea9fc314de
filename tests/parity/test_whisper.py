"""Whisper against transformers: outputs, every layer, greedy search, the way back, and CTranslate2's folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from twins import Twins, batch, check_export, check_gradients, difference, outputs_of, twins

from headway.domains.audio import Transcriber, TranscriptionOptions, read_sound
from headway.domains.audio.mel import RATE
from headway.engine import Engine, refusal
from headway.errors import UserError
from headway.formats.families.whisper import FAMILY, write
from headway.formats.open import open_config, open_model
from headway.formats.published import described_config, load_published
from headway.formats.settings import Settings
from headway.formats.weights import fill
from headway.layout import Layout
from headway.nn.models import Prompt
from headway.nn.models.presets import preset

T = pytest.importorskip("transformers")
TOLERANCE = 1e-4
FRAMES = 24  # transformers takes windows of one length only
SIZES: dict[str, dict[str, Any]] = {
    "small": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": 8},
    "large": {"d_model": 40, "encoder_layers": 1, "decoder_layers": 3, "num_mel_bins": 12},
}
HEADS = {"small": 2, "large": 5}


def make(size: str, folder: Path) -> Twins:
    torch.manual_seed(0)
    heads, own = HEADS[size], {"encoder_ffn_dim": 24, "decoder_ffn_dim": 20} if size == "small" else {}
    config = T.WhisperConfig(
        vocab_size=37,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        max_source_positions=FRAMES // 2,
        max_target_positions=30,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        begin_suppress_tokens=[4, 2],
        suppress_tokens=[5, 6],
        **{**SIZES[size], **own},
    )
    return twins(T.WhisperForConditionalGeneration(config), folder)


def frames(pair: Twins) -> Tensor:
    bands = pair.theirs.config.num_mel_bins
    return torch.randn(3, FRAMES, bands, generator=torch.Generator().manual_seed(2))


def logits(ours: Any, sounds: Tensor, ids: Tensor, layout: Layout) -> Tensor:
    with torch.inference_mode():
        return ours.heads["vocabulary"](ours(sounds, Layout.full(*sounds.shape[:2]), ids, layout).x)


@pytest.mark.parametrize("size", SIZES)
def test_every_layer_and_output_is_theirs_and_so_is_the_export(size: str, tmp_path: Path) -> None:
    pair = make(size, tmp_path / "theirs")
    sounds, target = frames(pair), batch([21, 12, 1], 37)
    given = {
        "input_features": sounds.transpose(1, 2),
        "decoder_input_ids": target.ids,
        "decoder_attention_mask": target.mask,
    }
    sides = [pair.theirs.model.encoder, pair.theirs.model.decoder]
    theirs = outputs_of([layer for side in sides for layer in side.layers], lambda: pair.theirs(**given))
    blocks = [*pair.ours.encoder.stack.blocks, *pair.ours.decoder.stack.blocks]
    ours = outputs_of(blocks, lambda: logits(pair.ours, sounds, target.ids, target.layout))
    depth = len(pair.ours.encoder.stack.blocks)
    assert len(ours) == len(theirs)
    for i, (a, c) in enumerate(zip(theirs, ours)):
        assert difference(a, c, None if i < depth else target.layout.mask) < TOLERANCE, f"layer {i}"
    with torch.inference_mode():
        wanted = pair.theirs(**given).logits
    found = logits(pair.ours, sounds, target.ids, target.layout)
    assert difference(wanted, found, target.layout.mask) < TOLERANCE
    check_export(pair, T.WhisperForConditionalGeneration.from_pretrained, lambda m: m(**given).logits, tmp_path)


def test_gradients(tmp_path: Path) -> None:
    pair = make("small", tmp_path / "theirs")
    sounds, target = frames(pair), batch([21, 12, 1], 37)
    features, sound_layout = sounds.transpose(1, 2), Layout.full(*sounds.shape[:2])

    def theirs(peer: Any) -> Tensor:
        output = peer(input_features=features, decoder_input_ids=target.ids, decoder_attention_mask=target.mask)
        return output.logits[target.layout.mask]

    def ours(mine: Any) -> Tensor:
        x = mine(sounds, sound_layout, target.ids, target.layout).x
        return mine.heads["vocabulary"](x)[target.layout.mask]

    check_gradients(pair, theirs, ours, tmp_path / "gradients")


def test_the_base_model_is_read_too(tmp_path: Path) -> None:
    pair = make("small", tmp_path / "theirs")
    pair.theirs.model.save_pretrained(tmp_path / "base")
    ours, _ = load_published(tmp_path / "base")
    assert all(torch.equal(a, c) for a, c in zip(pair.ours.state_dict().values(), ours.state_dict().values()))


def test_the_table_of_sinusoids_is_theirs_and_is_not_trained() -> None:
    with torch.device("meta"):
        tiny = preset("whisper-tiny").build(seed=None)
    assert "encoder.embed.positions.table" in tiny.state_dict()
    assert "encoder.embed.positions.table" not in dict(tiny.named_parameters())
    from transformers.models.whisper.modeling_whisper import sinusoids

    embed = preset("whisper-tiny").encoder.embed.build(384, 0, 1500)  # type: ignore[attr-defined]
    torch.testing.assert_close(embed.positions.table, sinusoids(1500, 384), rtol=0, atol=1e-6)


def test_the_preset_said_in_their_words_has_as_many_weights() -> None:
    config = preset("whisper-tiny")
    with torch.device("meta"):
        theirs = T.WhisperForConditionalGeneration(T.WhisperConfig.from_dict(write(config)))  # type: ignore[arg-type]
        ours = config.build(seed=None)
    count = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert count == sum(p.numel() for p in ours.parameters()) == 37_184_640


class Shapes:
    """The tensors of a model of transformers, without their numbers."""

    source = "a model of transformers"

    def __init__(self, model: Any) -> None:
        self._tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "proj_out.weight"}

    def names(self) -> Any:
        return self._tensors.keys()

    def get(self, name: str) -> Tensor:
        return self._tensors[name]

    def done(self, name: str) -> None: ...


@pytest.mark.parametrize("layers", [(32, 4), (32, 2), (24, 2)])
def test_turbo_and_distilled_models_open(layers: tuple[int, int], tmp_path: Path) -> None:
    """large-v3-turbo, distil-large-v3 and distil-medium.en: fewer layers decode than encode."""
    width, heads, bands, size = (1280, 20, 128, 51866) if layers[0] == 32 else (1024, 16, 80, 51864)
    config = T.WhisperConfig(
        vocab_size=size,
        num_mel_bins=bands,
        d_model=width,
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        architectures=["WhisperForConditionalGeneration"],
    )
    config.save_pretrained(tmp_path)
    ours = described_config(tmp_path)
    with torch.device("meta"):
        theirs, model = T.WhisperForConditionalGeneration(config), ours.build(None)
        fill(model, FAMILY.rules(ours), Shapes(theirs))
    trained = sum(parameter.numel() for parameter in theirs.parameters() if parameter.requires_grad)
    assert sum(parameter.numel() for parameter in model.parameters()) == trained
    assert [len(part.stack.blocks) for part in (ours.encoder, ours.decoder)] == list(layers)
    assert FAMILY.read(Settings({**FAMILY.defaults, **write(ours)}, "written"), ()) == ours


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["WhisperForAudioClassification"]}, "WhisperForAudioClassification"),
        ({"scale_embedding": True}, "scale_embedding is True"),
        ({"encoder_attention_heads": 3}, "width 16 is not divisible by heads 3"),
        ({"encoder_layers": 3}, "lacks tensor 'model.encoder.layers.2"),
    ],
)
def test_what_cannot_be_computed_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    make("small", tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, **settings}))
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


def greedy(model: Any, sounds: Tensor, count: int) -> list[list[int]]:
    rows = len(sounds)
    with torch.inference_mode():
        prompt = Prompt(torch.full((rows, 1), 3), Layout.full(rows, 1), sounds, Layout.full(*sounds.shape[:2]))
        logits, decoding = model.start(prompt, 1 + count)
        found = []
        for _ in range(count):
            found.append(logits.argmax(-1))
            logits, decoding = model.step(found[-1], decoding)
    return torch.stack(found, dim=1).tolist()


def test_the_engine_and_transformers_write_the_same(tmp_path: Path) -> None:
    pair = make("large", tmp_path)
    assert refusal(pair.ours) is None
    sounds = frames(pair)
    ours = greedy(pair.ours, sounds, 12)
    assert greedy(Engine(pair.ours, threads=1), sounds, 12) == ours
    ids = torch.full((len(sounds), 1), 3)
    with torch.inference_mode():
        for _ in range(12):
            said = pair.theirs(input_features=sounds.transpose(1, 2), decoder_input_ids=ids).logits
            ids = torch.cat([ids, said[:, -1:].argmax(-1)], dim=1)
    assert ours == ids[:, 1:].tolist()


@pytest.fixture(scope="module")
def tiny(whisper: Path) -> Any:
    return open_model(whisper)


def test_a_folder_of_ctranslate2_is_read(whisper: Path, tiny: Any) -> None:
    config = open_config(whisper)
    assert config.vocab_size == 51864  # type: ignore[attr-defined]
    assert sum(parameter.numel() for parameter in tiny.model.parameters()) == 37_184_640 - 384  # one symbol fewer
    assert tiny.usage.ends == (50256,)
    assert tiny.usage.decoder_start == 50257
    assert tiny.usage.generation["begin_suppress_tokens"] == [220, 50256]


def words(text: str) -> list[str]:
    kept = "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower())
    return kept.split()


def transcriber(tiny: Any, model: Any, **settings: Any) -> Transcriber:
    assert refusal(tiny.model) is None
    return Transcriber(model, Engine(model, threads=1), tiny.codec, tiny.usage, TranscriptionOptions(**settings))


def test_a_real_utterance_is_transcribed(tiny: Any, data_dir: Path) -> None:
    pytest.importorskip("soundfile")
    name = "sense_and_sensibility_01_austen_64kb-0890"
    folder = data_dir / "speech/pocketsphinx"
    lines = re.findall(r"<s> (.*?) </s> \((\S+)\)", (folder / "librivox.transcription").read_text())
    said = {name: text for text, name in lines}
    found = transcriber(tiny, tiny.model, words=True).transcribe(folder / f"{name}.wav")
    assert words(found.text) == words(said[name])
    assert found.language == "en"
    [segment] = found.segments
    assert "".join(word.word for word in segment.words) == segment.text
    assert all(0 <= word.start <= word.end <= found.duration for word in segment.words)
    spoken = [word.start for word in segment.words]
    assert spoken == sorted(spoken)
    assert (segment.temperature, segment.no_speech_prob < 0.1, segment.avg_logprob > -0.5) == (0, True, True)


def test_words_after_silence_are_not_early(tiny: Any, data_dir: Path) -> None:
    pytest.importorskip("soundfile")
    sound = np.pad(read_sound(data_dir / "speech/pocketsphinx/cards-001.wav").numpy(), (40 * RATE, 0))
    [segment] = transcriber(tiny, tiny.model, words=True, beam=1).transcribe(sound).segments
    assert words(segment.text)[1:2] == ["of"]
    assert segment.start == segment.words[0].start == pytest.approx(40.1, abs=0.15)
    assert segment.end == segment.words[-1].end == pytest.approx(40.9, abs=0.25)


def test_the_text_and_its_probability_are_those_of_faster_whisper(tiny: Any, data_dir: Path, whisper: Path) -> None:
    peer = pytest.importorskip("faster_whisper")
    pytest.importorskip("soundfile")
    place = data_dir / "speech/pocketsphinx/cards-002.wav"
    [theirs] = list(
        peer.WhisperModel(str(whisper), "cpu", compute_type="float32", cpu_threads=1).transcribe(str(place))[0]
    )
    [ours] = transcriber(tiny, tiny.model).transcribe(place).segments
    assert ours.text == theirs.text
    assert ours.avg_logprob == pytest.approx(theirs.avg_logprob, abs=2e-3)
    assert ours.no_speech_prob == pytest.approx(theirs.no_speech_prob, abs=2e-3)
    assert ours.compression_ratio == pytest.approx(theirs.compression_ratio)


def test_a_whisper_that_is_broken_or_is_told_nonsense(whisper: Path, tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "model.bin").symlink_to(whisper / "model.bin")
    (tmp_path / "config.json").write_text('{"suppress_ids": "all"}')
    with pytest.raises(UserError, match="suppress_ids"):
        open_model(tmp_path)
    with pytest.raises(UserError, match="supports English only, not language 'de'"):
        transcriber(tiny, tiny.model, language="de")
