"""T5, BART and Marian against transformers: outputs, every layer, greedy and beam search, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from twins import Batch, Twins, batch, check_export, check_gradients, difference, outputs_of, perturb, rows, twins

import headway as hw
from headway.app.cli import main as cli
from headway.app.conversion import export_model
from headway.engine import Engine, quantise, use_programs
from headway.errors import UserError
from headway.formats.open import open_model
from headway.formats.published import load_published, save_published
from headway.generate import SearchConfig, score_targets, translate_ids
from headway.nn.models import TokenEmbedConfig, TokenInputs
from headway.nn.parts.positions import LearnedConfig, SinusoidalConfig

T = pytest.importorskip("transformers")
TOLERANCE = 1e-5
SYMBOLS = {"small": 37, "large": 61}
SIDES: dict[str, dict[str, Any]] = {  # for BART and Marian
    "small": {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20},
    "large": {
        "encoder_layers": 1,
        "decoder_layers": 3,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 56,
        "scale_embedding": True,
    },
}
T5: dict[str, dict[str, Any]] = {
    "small": {"d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "large": {
        "d_model": 40,
        "d_kv": 8,
        "d_ff": 56,
        "num_layers": 1,
        "num_decoder_layers": 3,
        "num_heads": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 10,
        "layer_norm_epsilon": 1e-3,
    },
}


def t5(size: str, **settings: Any) -> Any:
    config = T.T5Config(vocab_size=SYMBOLS[size], decoder_start_token_id=0, **{**T5[size], **settings})
    return T.T5ForConditionalGeneration(config)


def t5_1_1(size: str) -> Any:
    """Gated, with a head of its own, whose outputs are not scaled."""
    found = t5(size, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    found.lm_head.weight = torch.nn.Parameter(torch.randn_like(found.lm_head.weight) * 0.2)
    return found


def later_t5(stem: str, size: str, **settings: Any) -> Any:
    """mT5 or umT5."""
    config = getattr(T, f"{stem}Config")(vocab_size=SYMBOLS[size], **{**T5[size], **settings})
    return getattr(T, f"{stem}ForConditionalGeneration")(config)


def own_head(stem: str, size: str) -> Any:
    """As they are published: the head is not the table."""
    found = later_t5(stem, size, tie_word_embeddings=False)
    found.lm_head.weight = torch.nn.Parameter(torch.randn_like(found.lm_head.weight) * 0.2)
    return found


def sides(size: str) -> dict[str, Any]:
    width, heads = {"small": (16, 2), "large": (40, 5)}[size]
    common = {"d_model": width, "encoder_attention_heads": heads, "decoder_attention_heads": heads}
    return {**common, **SIDES[size], "max_position_embeddings": 40}


def bart(size: str, **settings: Any) -> Any:
    activation = "gelu_new" if size == "large" else "gelu"
    config = T.BartConfig(
        vocab_size=SYMBOLS[size],
        activation_function=activation,
        forced_eos_token_id=None,
        **{**sides(size), **settings},
    )
    return T.BartForConditionalGeneration(config)


def marian(size: str, **settings: Any) -> Any:
    pad = settings.get("decoder_vocab_size", SYMBOLS[size]) - 1
    config = T.MarianConfig(
        vocab_size=SYMBOLS[size],
        activation_function="swish",
        pad_token_id=pad,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
        **{**sides(size), "scale_embedding": True, **settings},
    )
    return T.MarianMTModel(config)


def pre_norm(stem: str, size: str, **settings: Any) -> Any:
    """mBART, M2M-100 or Pegasus."""
    config = getattr(T, f"{stem}Config")(
        vocab_size=SYMBOLS[size],
        activation_function="relu" if size == "large" else "gelu",
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        **{**sides(size), **settings},
    )
    return getattr(T, f"{stem}ForConditionalGeneration")(config)


def t5gemma(size: str) -> Any:
    """Encoder and decoder of one size, or of two; in the small one every other layer has a window."""
    part: dict[str, Any] = {"vocab_size": SYMBOLS[size], "num_key_value_heads": 1, "query_pre_attn_scalar": 12}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "head_dim": 8}
    large = {"hidden_size": 40, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 6}
    encoder = {**part, **sizes, "num_hidden_layers": 3, "sliding_window": 5, "pad_token_id": 0}
    decoder = {**encoder, "num_hidden_layers": 2} if size == "small" else {**part, **large, "num_hidden_layers": 1}
    decoder |= {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0, "num_key_value_heads": 2}
    config = T.T5GemmaConfig(
        encoder=encoder, decoder=decoder, vocab_size=SYMBOLS[size], tie_word_embeddings=size == "small"
    )
    config._attn_implementation = "eager"
    return T.T5GemmaForConditionalGeneration(config)


MODELS: dict[str, Callable[[str], Any]] = {
    **{name: partial(pre_norm, stem) for name, stem in (("mbart", "MBart"), ("m2m", "M2M100"), ("pegasus", "Pegasus"))},
    "t5": t5,
    "t5-tied-unscaled": partial(t5, tie_word_embeddings=False),
    "t5-1.1": t5_1_1,
    "t5-silu": partial(t5, feed_forward_proj="gated-silu"),
    **{stem.lower(): partial(later_t5, stem) for stem in ("MT5", "UMT5")},
    **{f"{stem.lower()}-own-head": partial(own_head, stem) for stem in ("MT5", "UMT5")},
    "bart": bart,
    "t5gemma": t5gemma,
    "marian": marian,
    "marian-two-tables": partial(marian, decoder_vocab_size=29, share_encoder_decoder_embeddings=False),
}


def make(name: str, size: str, folder: Path) -> Twins:
    torch.manual_seed(0)
    return twins(MODELS[name](size), folder)


def pairs(theirs: Any) -> tuple[Batch, Batch, dict[str, Tensor]]:
    """Ragged sources and targets, long enough that far distances share buckets."""
    config, pad = theirs.config, theirs.config.pad_token_id or 0
    low = 4 if pad < 4 else 1
    symbols = getattr(config, "decoder_vocab_size", config.vocab_size) - 1
    source, target = batch([25, 9, 1, 17], symbols, pad, low), batch([21, 12, 8, 1], symbols, pad, low, seed=1)
    given = {
        "input_ids": source.ids,
        "attention_mask": source.mask,
        "decoder_input_ids": target.ids,
        "decoder_attention_mask": target.mask,
    }
    return source, target, given


def logits(ours: Any, source: Batch, target: Batch) -> Tensor:
    with torch.inference_mode():
        return ours.heads["vocabulary"](ours(source.ids, source.layout, target.ids, target.layout).x)


def layers_of(theirs: Any) -> list[torch.nn.Module]:
    sides = (theirs.get_encoder(), theirs.get_decoder())
    return [layer for side in sides for layer in (side.block if hasattr(side, "block") else side.layers)]


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_and_output_is_theirs_and_so_is_the_export(name: str, size: str, tmp_path: Path) -> None:
    pair = make(name, size, tmp_path / "theirs")
    source, target, given = pairs(pair.theirs)
    theirs = outputs_of(layers_of(pair.theirs), lambda: pair.theirs(**given))
    blocks = [*pair.ours.encoder.stack.blocks, *pair.ours.decoder.stack.blocks]
    ours = outputs_of(blocks, lambda: logits(pair.ours, source, target))
    depth = len(pair.ours.encoder.stack.blocks)
    assert len(ours) == len(theirs)
    for i, (a, c) in enumerate(zip(theirs, ours)):
        assert difference(a, c, (source if i < depth else target).layout.mask) < TOLERANCE, f"layer {i}"
    with torch.inference_mode():
        wanted = pair.theirs(**given).logits
    assert difference(wanted, logits(pair.ours, source, target), target.layout.mask) < TOLERANCE
    check_export(pair, type(pair.theirs).from_pretrained, lambda m: m(**given).logits, tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_gradients(name: str, tmp_path: Path) -> None:
    pair = make(name, "small", tmp_path / "theirs")
    source, target, given = pairs(pair.theirs)

    def ours(mine: Any) -> Tensor:
        x = mine(source.ids, source.layout, target.ids, target.layout).x
        return mine.heads["vocabulary"](x)[target.layout.mask]

    check_gradients(pair, lambda peer: peer(**given).logits[target.layout.mask], ours, tmp_path / "gradients")


GENERATING = ["t5", "t5-1.1", "bart", "t5gemma", "marian", "marian-two-tables"]
LIMIT = 12


def generator(name: str, folder: Path) -> tuple[Twins, Batch]:
    """A model whose sentences differ and end, and sources for it."""
    theirs = MODELS[name]("small").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.requires_grad and parameter.dim() == 1:
                parameter.add_(noise * 0.05)
            elif parameter.requires_grad:  # small tables, so that layers say more than the last symbol
                parameter.copy_(noise * 0.1 if "shared" in key or "embed_tokens" in key else noise)
    source, _, _ = pairs(theirs)
    theirs.generation_config.eos_token_id = None
    free = [row[1:] for row in generated(theirs, source).sequences.tolist()]
    ends = {s for row in free for s in row}
    end = max(sorted(ends), key=lambda s: len({row.index(s) for row in free if s in row} | {s in row for row in free}))
    theirs.config.eos_token_id = theirs.generation_config.eos_token_id = end
    theirs.save_pretrained(folder)
    return Twins(theirs, *load_published(folder), folder), source


def generated(theirs: Any, source: Batch, **options: Any) -> Any:
    settings = {"max_new_tokens": LIMIT, "do_sample": False, "num_beams": 1, **options}
    return theirs.generate(
        input_ids=source.ids, attention_mask=source.mask, return_dict_in_generate=True, output_scores=True, **settings
    )


def cut(row: list[int], end: int) -> list[int]:
    """What was written, between the start and the end."""
    return row[1 : row.index(end, 1)] if end in row[1:] else row[1:]


def translated(pair: Twins, source: Batch, search: SearchConfig, **options: Any) -> Any:
    """As the model says it is to be used."""
    usage = pair.usage
    start = usage.begin if usage.decoder_start is None else usage.decoder_start
    known = {"bos": start, "eos": usage.ends[0], "suppressed": usage.suppressed}
    forced = [usage.forced] * len(source.ids) if usage.forced else None
    return translate_ids(pair.ours, rows(source), config=search, prefixes=forced, **{**known, **options})


GREEDY = SearchConfig(beam=1, most_ratio=0.0, most_extra=LIMIT)
BEAM = SearchConfig(beam=4, most_ratio=0.0, most_extra=LIMIT, length_penalty=0.0, n_best=4)


@pytest.mark.parametrize("name", GENERATING)
def test_greedy_search_writes_the_same(name: str, tmp_path: Path) -> None:
    pair, source = generator(name, tmp_path)
    end = pair.usage.ends[0]
    theirs = [cut(row, end) for row in generated(pair.theirs, source).sequences.tolist()]
    ours = [best.ids for (best,) in translated(pair, source, GREEDY)]
    assert ours == theirs
    if name == "t5gemma":  # the engine caps the scores of cross-attention
        on_engine = pair._replace(ours=Engine(pair.ours, threads=1))
        assert [best.ids for (best,) in translated(on_engine, source, GREEDY)] == theirs
    assert len({len(ids) for ids in ours}) > 1


@pytest.mark.parametrize("name", GENERATING)
def test_beams_are_worth_the_same(name: str, tmp_path: Path) -> None:
    """Without a length penalty a hypothesis is worth its log probability with both.

    The searches differ: theirs follows four beams beside the finished ones, ours has four places for both.
    """
    pair, source = generator(name, tmp_path)
    usage, options = pair.usage, {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0}
    said = generated(pair.theirs, source, **options)
    end = usage.ends[0]
    theirs = [(cut(row, end), end in row[1:]) for row in said.sequences.tolist()]
    sources = [row for row in rows(source) for _ in range(4)]
    totals = score_targets(
        pair.ours,
        sources,
        [ids for ids, _ in theirs],
        bos=usage.begin if usage.decoder_start is None else usage.decoder_start,
        eos=end,
    )
    for (_, finished), total, score in zip(theirs, totals, said.sequences_scores.tolist()):
        assert sum(total if finished else total[:-1]) == pytest.approx(score, abs=1e-4, rel=1e-4)
    found = translated(pair, source, BEAM)
    same = 0
    for i, hypotheses in enumerate(found):
        worth = {
            tuple(ids): s for (ids, _), s in zip(theirs[4 * i :], said.sequences_scores.tolist()[4 * i : 4 * i + 4])
        }
        for hypothesis in hypotheses:
            if tuple(hypothesis.ids) in worth:
                assert hypothesis.score == pytest.approx(worth[tuple(hypothesis.ids)], abs=1e-4, rel=1e-4)
                same += 1
    assert same >= len(found)  # the searches mostly meet


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", ["bart", "marian"])
def test_forced_and_suppressed_symbols_are_those_of_the_files(name: str, beams: int, tmp_path: Path) -> None:
    pair, source = generator(name, tmp_path / "free")
    end, usual = pair.usage.ends[0], [best.ids for (best,) in translated(pair, source, GREEDY)]
    common = max({s for ids in usual for s in ids}, key=lambda s: sum(ids.count(s) for ids in usual))
    pair.theirs.generation_config.bad_words_ids = [[common], [pair.theirs.config.pad_token_id]]
    pair.theirs.generation_config.forced_bos_token_id = 7
    pair.theirs.save_pretrained(tmp_path / "bound")
    bound = Twins(pair.theirs, *load_published(tmp_path / "bound"), tmp_path / "bound")
    assert bound.usage.suppressed == (common, pair.theirs.config.pad_token_id)
    assert bound.usage.forced == (7,)
    said = generated(bound.theirs, source, num_beams=beams, length_penalty=0.0)
    theirs = [cut(row, end) for row in said.sequences.tolist()]
    ours = translated(bound, source, replace(BEAM, beam=beams, n_best=1))
    for (best,), ids in zip(ours, theirs):
        assert best.ids[0] == 7
        assert common not in best.ids
        assert beams > 1 or best.ids == ids


def test_what_the_files_say_of_generation_is_written_back(tmp_path: Path) -> None:
    pair, _ = generator("marian", tmp_path / "first")
    pair.theirs.generation_config.bad_words_ids = [[pair.theirs.config.pad_token_id], [3, 4]]
    pair.theirs.generation_config.num_beams = 6
    pair.theirs.save_pretrained(tmp_path / "theirs")
    ours, usage = load_published(tmp_path / "theirs")
    save_published(ours, ours.config, tmp_path / "out", usage)
    back = T.MarianMTModel.from_pretrained(tmp_path / "out").generation_config
    assert back.bad_words_ids == [[pair.theirs.config.pad_token_id], [3, 4]]
    assert (back.num_beams, back.decoder_start_token_id) == (6, pair.theirs.config.pad_token_id)


def test_t5_has_its_relative_bias_in_layer_0_and_does_not_scale_scores(tmp_path: Path) -> None:
    pair = make("t5", "large", tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if "relative_attention_bias" in name]
    assert sorted(names) == [
        f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for side in ("decoder", "encoder")
    ]
    for side in (pair.ours.encoder, pair.ours.decoder):
        assert {block.mixer.config.bias for block in side.stack.blocks} == {"relative"}  # shared by all layers
        assert {block.mixer.config.scale for block in side.stack.blocks} == {1.0}
    assert {block.cross.config.scale for block in pair.ours.decoder.stack.blocks} == {1.0}


@pytest.mark.parametrize(("name", "tie", "scaled"), [("t5", "all", True), ("t5-1.1", "embeddings", False)])
@pytest.mark.parametrize("spelling", ["newer", "older"])
def test_the_head_of_t5_is_tied_and_scaled_or_neither(
    name: str, tie: str, scaled: bool, spelling: str, tmp_path: Path
) -> None:
    pair = make(name, "small", tmp_path)
    if spelling == "older":
        settings = json.loads((tmp_path / "config.json").read_text())
        del settings["scale_decoder_outputs"]
        settings["tie_word_embeddings"] = tie == "all"
        (tmp_path / "config.json").write_text(json.dumps(settings))
    ours, _ = load_published(tmp_path)
    assert ours.config.tie == tie
    assert ours.config.decoder.heads["vocabulary"].scale == (16**-0.5 if scaled else 1.0)
    source, target, given = pairs(pair.theirs)
    with torch.inference_mode():
        wanted = pair.theirs(**given).logits
    assert difference(wanted, logits(ours, source, target), target.layout.mask) < TOLERANCE


def test_an_unused_bias_and_copies_of_the_table_in_older_t5_files_are_read(tmp_path: Path) -> None:
    pair = make("t5", "small", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    copies = {f"{side}.embed_tokens.weight": tensors["shared.weight"].clone() for side in ("encoder", "decoder")}
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 2)}
    head = {"lm_head.weight": tensors["shared.weight"].clone()}
    save_file({**tensors, **copies, **unused, **head}, tmp_path / "model.safetensors")
    ours, usage = load_published(tmp_path)
    assert all(torch.equal(a, c) for a, c in zip(pair.ours.state_dict().values(), ours.state_dict().values()))
    save_published(ours, ours.config, tmp_path / "out", usage)
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == tensors.keys()  # the tied head once


def test_bart_counts_positions_from_2_and_norms_its_embeddings(tmp_path: Path) -> None:
    pair = make("bart", "small", tmp_path)
    source, target, given = pairs(pair.theirs)
    for side in (pair.ours.encoder, pair.ours.decoder):
        embed = side.config.embed
        assert isinstance(embed, TokenEmbedConfig)
        assert embed.positions == LearnedConfig(offset=2)
        assert embed.norm is not None
        side.embed.positions.table.data[:2] = torch.nan  # rows that no token has
    with torch.inference_mode():
        wanted = pair.theirs(**given).logits
    assert difference(wanted, logits(pair.ours, source, target), target.layout.mask) < TOLERANCE


def test_a_bart_without_bias_or_prefix_is_read(tmp_path: Path) -> None:
    """As the files of BartModel are, from which transformers makes a whole model too."""
    pair = make("bart", "small", tmp_path)
    pair.theirs.model.save_pretrained(tmp_path / "base")
    ours, _ = load_published(tmp_path / "base")
    assert not ours.config.decoder.heads["vocabulary"].bias
    whole = T.BartForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    source, target, given = pairs(pair.theirs)
    with torch.inference_mode():
        wanted = whole(**given).logits
    assert difference(wanted, logits(ours, source, target), target.layout.mask) < TOLERANCE


def test_marian_has_sines_before_cosines_scaled_embeddings_a_bias_and_starts_with_padding(tmp_path: Path) -> None:
    pair = make("marian", "small", tmp_path)
    embed = pair.ours.config.decoder.embed
    assert embed.positions == SinusoidalConfig(interleaved=False)
    assert (embed.scaled, pair.ours.decoder.embed.scale) == (True, 4.0)
    assert pair.usage.decoder_start == pair.usage.pad == pair.theirs.config.pad_token_id
    assert torch.equal(pair.ours.heads["vocabulary"].bias, pair.theirs.final_logits_bias[0])
    source, _, _ = pairs(pair.theirs)
    like = torch.zeros(1, 25, 16)
    theirs = pair.theirs.model.encoder.embed_positions.weight[:25]
    ours = pair.ours.encoder.embed.positions(source.layout, like)
    assert difference(ours[0], theirs) < 1e-6


def test_positions_that_older_marian_files_hold_are_left_out(tmp_path: Path) -> None:
    pair = make("marian", "small", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for side in ("encoder", "decoder"):
        tensors[f"model.{side}.embed_positions.weight"] = pair.theirs.model.encoder.embed_positions.weight.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    ours, _ = load_published(tmp_path)
    assert all(torch.equal(a, c) for a, c in zip(pair.ours.state_dict().values(), ours.state_dict().values()))


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("stem", ["T5", "MT5", "UMT5"])
def test_an_encoder_alone_is_theirs(stem: str, size: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": size == "large"}
    config = getattr(T, f"{stem}Config")(vocab_size=SYMBOLS[size], **{**T5[size], **settings})
    torch.manual_seed(0)
    pair = twins(getattr(T, f"{stem}EncoderModel")(config), tmp_path / "theirs")
    source = batch([25, 9, 1, 17], SYMBOLS[size] - 1, 0, 1)
    run: Callable[[Any], Tensor] = lambda m: m(input_ids=source.ids, attention_mask=source.mask).last_hidden_state  # noqa: E731
    with torch.inference_mode():
        ours = pair.ours(source.ids, source.layout).x
        assert difference(run(pair.theirs), ours, source.layout.mask) < TOLERANCE
    check_export(pair, type(pair.theirs).from_pretrained, lambda m: run(m)[source.layout.mask], tmp_path)
    quantised = quantise(load_published(tmp_path / "theirs").model, "int8")
    use_programs(quantised)
    assert quantised.stack.program is not None
    with torch.inference_mode():
        assert difference(ours, quantised(source.ids, source.layout).x, source.layout.mask) < 0.1


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_classifier_is_theirs(size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labels = dict(enumerate(["contradiction", "neutral", "entailment"]))
    config = bart(size).config
    config.update({"id2label": labels, "label2id": {name: i for i, name in labels.items()}, "eos_token_id": 2})
    pair = twins(T.BartForSequenceClassification(config), tmp_path / "theirs")
    source = batch([25, 9, 2, 17], SYMBOLS[size] - 1, 1)
    for row, length in zip(source.ids, source.layout.lengths.tolist()):
        row[length - 1] = 2
    run: Callable[[Any], Tensor] = lambda m: m(input_ids=source.ids, attention_mask=source.mask).logits  # noqa: E731
    with torch.inference_mode():
        ours = pair.ours.output("classes", TokenInputs(source.ids), source.layout)
        assert difference(run(pair.theirs), ours) < TOLERANCE
    assert pair.usage.labels == tuple(labels.values())
    check_export(pair, type(pair.theirs).from_pretrained, run, tmp_path)
    pair.ours.output("classes", TokenInputs(source.ids), source.layout).logsumexp(1).sum().backward()
    run(pair.theirs).logsumexp(1).sum().backward()
    gradients = pair.theirs.model.encoder.layers[0].fc1, pair.ours.encoder.stack.blocks[0].feed_forward.up
    assert difference(*(layer.weight.grad for layer in gradients)) < 1e-4


def test_texts_and_pairs_are_classified_as_by_their_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As with bart-large-mnli, whose labels say whether a text entails another."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    symbols = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))
    labels = ["contradiction", "neutral", "entailment"]
    config = bart("small").config
    config.update({"vocab_size": len(symbols), "id2label": dict(enumerate(labels)), "max_position_embeddings": 200})
    torch.manual_seed(0)
    theirs = T.BartForSequenceClassification(config).eval()
    perturb(theirs, 0.3, 1)
    theirs.save_pretrained(tmp_path)
    tokenizer, ours = T.BartTokenizer.from_pretrained(tmp_path), hw.load(tmp_path, "cpu")
    items: list[Any] = ["A man sleeps.", "A dog runs over a field."]
    for texts in (items, [("A man sleeps.", "Somebody is awake."), ("A dog runs.", "An animal moves.")]):
        for item, found in zip(texts, ours.classify(texts)):
            given = tokenizer(*([item] if isinstance(item, str) else item), return_tensors="pt")
            probabilities = theirs(**given).logits[0].softmax(-1)
            assert [found[name] for name in labels] == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert "classify" in ours.verbs
    assert not {"translate", "generate", "logits"} & set(ours.verbs)
    assert cli.main(["classify", str(tmp_path), "A man sleeps."]) == 0
    assert cli.main(["show", str(tmp_path)]) == 0
    assert "heads: classes" in capsys.readouterr().out
    with pytest.raises(UserError, match="is an encoder-decoder that classifies text, which cannot translate"):
        ours.translate("A man sleeps.")
    words = [
        f"{animal} {verb}"
        for animal in ("cat", "dog", "cow", "owl", "fox")
        for verb in ("runs", "hops", "sits", "eats")
    ]
    table = [{"text": text, "label": "cat" if "cat" in text else "other"} for text in words]
    settings = {"train.steps": 2, "train.batch_tokens": 64, "train.precision": "fp32"}
    run = hw.train("classification", table, settings, run=tmp_path / "run", start=tmp_path, progress=False, samples=0)
    assert set(hw.load(tmp_path / "run", "cpu").classify("a cat")) == {"cat", "other"}
    assert run.summary["scores"]["accuracy"] >= 0
    export_model(open_model(tmp_path / "run"), tmp_path / "out")
    tuned = T.BartForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    logits = tuned(**tokenizer("a cat", return_tensors="pt")).logits[0].softmax(-1)
    found = hw.load(tmp_path / "run", "cpu").classify("a cat")
    assert [found[tuned.config.id2label[i]] for i in range(2)] == pytest.approx(logits.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("bart", {"architectures": ["BartForQuestionAnswering"]}, "BartForQuestionAnswering"),
        ("marian", {"normalize_embedding": True}, "normalize_embedding is True"),
        ("t5", {"architectures": ["T5ForTokenClassification"]}, "T5ForTokenClassification"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'mish'"),
        ("t5-1.1", {"num_decoder_layers": 3}, "lacks tensor 'decoder.block.2"),
    ],
)
def test_what_cannot_be_computed_is_refused(name: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    make(name, "small", tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, **settings}))
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)
