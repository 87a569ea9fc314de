"""A captioner: the image is a prefix that is seen both ways, and it writes as it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headway.config import from_dict, override, to_dict
from headway.errors import ConfigError, UserError
from headway.generate import Limits, Sampling, SearchConfig, Session, beam_search
from headway.layout import Layout
from headway.nn.mixers import AttentionConfig
from headway.nn.models import (
    BlockConfig,
    Captioner,
    CaptionerConfig,
    ModelConfig,
    ProjectorConfig,
    Prompt,
    StackConfig,
    build,
    describe,
)
from headway.nn.models.presets import decoder, gpt, preset, vit
from headway.visibility import Causal

close = torch.testing.assert_close
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
TOWER = vit(16, 2, 2, 4, size=8)


def learned() -> CaptionerConfig:
    """GPT-2's positions, and a tower with a class token, which the decoder does not read."""
    return CaptionerConfig(TOWER, gpt(16, 2, 2, vocab_size=11, context=20))


def rotary() -> CaptionerConfig:
    return CaptionerConfig(replace(TOWER, width=12), decoder(16, 2, 4, 2, 24, 11), ProjectorConfig(layers=1))


def ready(config: ModelConfig) -> Captioner:
    model = build(config).eval().double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    assert isinstance(model, Captioner)
    return model


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 11, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Captioner, seen: Tensor, ids: Tensor, layout: Layout | None = None) -> Tensor:
    return model.heads["vocabulary"](model(seen, ids, layout or Layout.full(*ids.shape)).x)


@pytest.mark.parametrize("config", [learned(), rotary(), override(rotary(), {"mixer": "gru"})])
def test_it_writes_as_it_trains(config: CaptionerConfig) -> None:
    """Ragged texts, an image each; recurrent mixers read the image first, in order."""
    model, seen, ids = ready(config), images(3), texts(3, 7)
    lengths = torch.tensor([3, 1, 2])
    with torch.no_grad():
        whole = logits(model, seen, ids)
        found, decoding = model.start(Prompt(ids[:, :3], Layout.padded(lengths, 3), seen), 7)
        for step in range(4):
            close(found, whole[torch.arange(3), lengths - 1 + step], **TOLERANCE)
            found, decoding = model.step(ids[torch.arange(3), lengths + step], decoding)


@pytest.mark.parametrize("config", [learned(), rotary()])
def test_rows_and_padding_do_not_matter(config: CaptionerConfig) -> None:
    model, seen, ids = ready(config), images(3), texts(3, 6)
    lengths = [6, 2, 4]
    with torch.no_grad():
        together = logits(model, seen, ids, Layout.padded(lengths, 6))
        for row, length in enumerate(lengths):
            alone = logits(model, seen[row : row + 1], ids[row : row + 1, :length])
            close(together[row, :length], alone[0], **TOLERANCE)


def tokens_of(model: Captioner, seen: Tensor, ids: Tensor) -> Tensor:
    """The decoder's features of the whole row, the image's tokens included."""
    caught: list[Tensor] = []
    hook = model.decoder.stack.register_forward_hook(lambda module, inputs, output: caught.append(output.x))
    with torch.no_grad():
        model(seen, ids, Layout.full(*ids.shape))
    hook.remove()
    return caught[0]


def test_the_prefix_is_seen_both_ways_and_the_text_causally(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = ready(rotary()), texts(1, 5)
    vectors = torch.randn(1, 4, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    changed = vectors.clone()
    changed[:, 3] += 1.0  # the last patch, as the projector gives it
    monkeypatch.setattr(model, "encode_images", lambda seen: (vectors, {}))
    before, other = tokens_of(model, images(1), ids), ids.clone()
    other[0, 3] = (other[0, 3] + 1) % 11
    after = tokens_of(model, images(1), other)
    close(after[:, : 4 + 3], before[:, : 4 + 3], **TOLERANCE)  # neither the image nor earlier text sees later text
    assert not torch.allclose(after[:, 4 + 3 :], before[:, 4 + 3 :])
    monkeypatch.setattr(model, "encode_images", lambda seen: (changed, {}))
    after = tokens_of(model, images(1), ids)
    assert ((after - before).abs().amax(-1) > 1e-6).all()  # all tokens see the last patch, the first patch too


def test_beams_share_their_image() -> None:
    """Beam search over several images at once is beam search over each alone; a beam of 1 is greedy."""
    model, seen = ready(learned()), images(3)
    begin = lambda count: (torch.ones(count, 1, dtype=torch.long), Layout.full(count, 1))  # noqa: E731
    for beam in (1, 3):
        search = SearchConfig(beam=beam, length_penalty=0.0)
        together = beam_search(model, Prompt(*begin(3), seen), [6] * 3, 10, search)
        for row in range(3):
            [alone] = beam_search(model, Prompt(*begin(1), seen[row : row + 1]), [6], 10, search)
            assert [h.ids for h in alone] == [h.ids for h in together[row]]
    greedy = beam_search(model, Prompt(*begin(1), seen[:1]), [6], 10, SearchConfig(beam=1))[0][0].ids
    row = [1]
    for symbol in greedy:
        assert int(logits(model, seen[:1], torch.tensor([row]))[0, -1].argmax()) == symbol
        row.append(symbol)


def test_a_session_writes_of_images() -> None:
    """Ragged beginnings, an image each; greedy is a beam of 1, and what is drawn does not hang on the batch."""
    model, seen = ready(learned()), images(3)
    prompts, session = [[1], [1, 4, 2], [1]], Session(model)
    limits = Limits(6, stop_ids=(10,))
    greedy = session.generate(prompts, Sampling(0.0), limits, list(seen))
    for row, found in enumerate(greedy):
        prompt = Prompt(torch.tensor([prompts[row]]), Layout.full(1, len(prompts[row])), seen[row : row + 1])
        [[best]] = beam_search(model, prompt, [6], 10, SearchConfig(beam=1))
        assert found.ids == best.ids
    drawn = session.generate(prompts, Sampling(1.0, seed=3), limits, list(seen))
    assert [
        session.generate([prompts[row]], Sampling(1.0, seed=3), limits, [seen[row]])[0].ids for row in range(3)
    ] == [found.ids for found in drawn]
    with pytest.raises(UserError, match="this model needs a source"):
        session.generate(prompts)
    with pytest.raises(UserError, match=r"a source is token ids, but this model reads images; pass Float\[3, height"):
        session.generate([[1]], sources=[[1, 2]])
    with pytest.raises(UserError, match="images have different sizes"):
        session.generate([[1], [1]], sources=[seen[0], images(1, 12)[0]])


def test_images_of_another_size_are_longer_prefixes() -> None:
    model, ids = ready(learned()), texts(2, 4)
    found, decoding = model.start(Prompt(ids, Layout.full(2, 4), images(2, 12)), 8)
    close(found, logits(model, images(2, 12), ids)[:, -1], **TOLERANCE)
    assert decoding.positions.tolist() == [9 + 4, 9 + 4]
    with pytest.raises(UserError, match="an image with 16 patches and 5 text tokens exceed the context of 20"):
        logits(model, images(2, 16), texts(2, 5))
    assert model.config.context == 16


def test_a_window_that_cannot_hold_the_image_is_refused_by_generation() -> None:
    config = rotary()
    block = config.decoder.stack.blocks[0]
    narrow = replace(block, mixer=replace(block.mixer, pattern=Causal(2)))  # type: ignore[type-var]
    model = ready(replace(config, decoder=replace(config.decoder, stack=StackConfig((narrow,)))))
    with pytest.raises(
        ConfigError, match=r"exceed the limit of 65 at once for a KV cache of 66 slots; widen the attention window"
    ):
        model.start(Prompt(texts(1, 70), Layout.full(1, 70), images(1)), 80)


def test_settings_and_description() -> None:
    config = override(
        learned(), {"width": 24, "depth": [1, 3], "heads": 4, "dropout": 0.1, "symbols": 30, "context": 9}
    )
    assert [len(part.stack.blocks) for part in (config.tower, config.decoder)] == [1, 3]
    assert (config.width, config.vocab_size, config.context, config.decoder.context) == (24, 30, 9, 13)
    assert from_dict(ModelConfig, to_dict(config)) == config
    found = describe(config)
    assert found["parameters"] == sum(p.numel() for p in build(config).parameters())
    assert found["tree"][0] == "captioner, 4 image tokens before the text, bidirectional"
    mixed = override(rotary(), {"mixer": "lstm"})
    assert describe(mixed)["tree"][0].endswith("before the text, in order")
    assert mixed.tower.stack.blocks[0].mixer.kind == "bidirectional"  # type: ignore[attr-defined]


def test_what_makes_no_captioner_is_refused() -> None:
    text = gpt(16, 1, 2, vocab_size=11, context=20)
    for config, message in (
        (CaptionerConfig(text, text), "model.tower has embed tokens, which does not take images"),
        (CaptionerConfig(TOWER, TOWER), "model.decoder has no token embedding"),
        (CaptionerConfig(TOWER, replace(text, context=4)), "a context of 4, which the 4 patches of an image fill"),
        (CaptionerConfig(TOWER, preset("bert-base")), "model.decoder sees later tokens"),
        (CaptionerConfig(TOWER, preset("marian-base").decoder), "model.decoder reads an encoder's output"),  # type: ignore[attr-defined]
    ):
        with pytest.raises(ConfigError, match=message):
            build(config)
    model = ready(learned())
    with pytest.raises(UserError, match="the prompt has no image"):
        model.start(Prompt(texts(1, 1), Layout.full(1, 1)), 4)
    with pytest.raises(UserError, match="2 images for 1 texts"):
        logits(model, images(2), texts(1, 2))
    with pytest.raises(UserError, match="a row has one image"):
        logits(model, images(1), texts(1, 4), Layout.packed([[2, 2]]))


def test_blocks_of_attention_keep_groups_in_a_state() -> None:
    """What a prefix that is read into a state comes to is what it comes to in parallel."""
    block = BlockConfig(AttentionConfig(2), None, None)
    stack = build(replace(gpt(16, 1, 2, vocab_size=3, context=9), stack=StackConfig((block,)))).double().stack
    x = torch.randn(2, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, -1, -1]])
    layout = Layout(positions, group=torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]))
    with torch.no_grad():
        whole = stack(x, layout).x
        stated = stack(x, layout, stack.initial_states(2, 9, like=x)).x
        causal = stack(x, Layout(positions)).x
    close(stated[layout.mask], whole[layout.mask], **TOLERANCE)
    assert not torch.allclose(causal[:, 0], whole[:, 0])
