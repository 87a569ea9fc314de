"""Likely mistakes in reading encoders: other names and settings of the same models, both directions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_encoders import LENGTHS, TOLERANCE, inputs, model
from torch import Tensor
from twins import (
    Batch,
    Twins,
    batch,
    check_gradients,
    difference,
    perturb,
    published_gradients,
    sum_randomly,
    twins,
)

from headway.engine import quantise, use_programs
from headway.errors import UserError
from headway.formats.families import families
from headway.formats.published import can_express, classification_head, load_published, save_published
from headway.layout import Layout
from headway.nn.models import TokenInputs
from headway.nn.models.convolved import DocumentConvolution
from headway.nn.models.disentangled import Disentangled, DisentangledConfig
from headway.nn.models.token_dropout import TokenDropoutEmbedConfig
from headway.visibility import Full, Local

T = pytest.importorskip("transformers")


def change_settings(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def rename(folder: Path, change: Callable[[str], str], **more: Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = {change(name): tensor.clone() for name, tensor in load_file(path).items()}
    save_file({**tensors, **more}, path)


def logits(ours: Any, ids: Any, layout: Layout, head: str = "vocabulary") -> Tensor:
    with torch.inference_mode():
        return ours.output(head, ids, layout)


def test_nomic_bert_in_its_own_words(tmp_path: Path) -> None:
    theirs = model("NomicBert", "ForMaskedLM", "small")
    perturb(theirs.eval(), 0.2, 1)
    theirs.save_pretrained(tmp_path)
    new = load_published(tmp_path).model
    own = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 24, "layer_norm_epsilon": 1e-12}
    own |= {"rotary_emb_base": 1000, "activation_function": "swiglu", "prenorm": False, "rotary_scaling_factor": None}
    own |= {
        "vocab_size": 53,
        "type_vocab_size": 2,
        "model_type": "nomic_bert",
        "auto_map": {"AutoModel": "x.NomicBert"},
    }
    change_settings(tmp_path, lambda settings: {**own, "architectures": ["NomicBertForPreTraining"]})
    rename(tmp_path, lambda name: name.replace("nomic_bert.", "bert."))
    old, usage = load_published(tmp_path)
    assert replace(old.config, init=new.config.init) == new.config
    save_published(old, old.config, tmp_path / "out", usage)
    assert not {"n_embd", "auto_map"} & json.loads((tmp_path / "out" / "config.json").read_text()).keys()
    b, given, ours_given = inputs(theirs)
    back = T.NomicBertForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        wanted = theirs(**given).logits
        assert difference(wanted, logits(old, ours_given, b.layout), b.layout.mask) < TOLERANCE
        assert difference(wanted, back(**given).logits, b.layout.mask) < TOLERANCE
    change_settings(tmp_path, lambda settings: {**settings, "prenorm": True})
    with pytest.raises(UserError, match="prenorm is True"):
        load_published(tmp_path)


def test_gte_with_code_of_its_own_scales_by_ntk(tmp_path: Path) -> None:
    """Su 2023: theta times s, and every frequency divided by s^(2 / R)."""
    theirs = model("Gte", "Model", "small")
    perturb(theirs.eval(), 0.2, 1)
    theirs.save_pretrained(tmp_path)
    size, factor = 8, 4.0
    frequencies = (500.0 * factor) ** (-torch.arange(0, size, 2) / size) / factor ** (2 / size)
    theirs.rotary_emb.inv_freq.copy_(frequencies)

    def own(settings: dict[str, Any]) -> dict[str, Any]:
        settings = {name: value for name, value in settings.items() if name != "rope_parameters"}
        scaling = {"rope_theta": 500.0, "rope_scaling": {"type": "ntk", "factor": factor}}
        return {**settings, **scaling, "model_type": "new", "layer_norm_type": "layer_norm", "pack_qkv": True}

    change_settings(tmp_path, own)
    rename(tmp_path, lambda name: name.replace("gte.", "new."))
    ours, usage = load_published(tmp_path)
    b, given, ours_given = inputs(theirs)
    save_published(ours, ours.config, tmp_path / "out", usage)
    back = T.AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        wanted = theirs(**given).last_hidden_state
        assert difference(wanted, ours(ours_given, b.layout).x, b.layout.mask) < TOLERANCE
        assert difference(wanted, back(**given).last_hidden_state, b.layout.mask) < TOLERANCE
    change_settings(tmp_path, lambda settings: {**settings, "layer_norm_type": "rms_norm"})
    with pytest.raises(UserError, match="layer_norm_type is 'rms_norm'"):
        load_published(tmp_path)


def jina(
    tensors: dict[str, Tensor], ids: Tensor, types: Tensor, heads: int, gate: Callable[[Tensor], Tensor]
) -> Tensor:
    """Günther et al. 2023, section 3: BERT with ALiBi in both directions and gated feed-forward layers, one row."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], 1e-12)

    def dense(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    x = tensors["bert.embeddings.word_embeddings.weight"][ids]
    x = norm(x + tensors["bert.embeddings.token_type_embeddings.weight"][types], "bert.embeddings.LayerNorm")
    steps = torch.arange(len(ids))
    slopes = torch.tensor([2 ** (-8 * (i + 1) / heads) for i in range(heads)])
    bias = -slopes[:, None, None] * (steps[:, None] - steps).abs()
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        names = (f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))
        q, k, v = (dense(x, name).unflatten(-1, (heads, -1)).transpose(0, 1) for name in names)
        weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        y = dense((weights @ v).transpose(0, 1).flatten(1), f"{layer}.attention.output.dense")
        x = norm(x + y, f"{layer}.attention.output.LayerNorm")
        first, second = dense(x, f"{layer}.mlp.gated_layers").chunk(2, -1)
        x = norm(x + dense(gate(first) * second, f"{layer}.mlp.wo"), f"{layer}.mlp.layernorm")
    return x


@pytest.mark.parametrize(("kind", "gate"), [("geglu", F.gelu), ("reglu", F.relu)])
def test_jina_attends_by_distance_and_has_gated_layers(
    kind: str, gate: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    theirs = model("Bert", "ForMaskedLM", "small")
    perturb(theirs, 0.2, 1)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    kept = {name: value for name, value in tensors.items() if "position" not in name and ".intermediate" not in name}
    for i in range(2):
        layer = f"bert.encoder.layer.{i}"
        kept[f"{layer}.mlp.gated_layers.weight"] = torch.randn(48, 16, generator=generator) / 4
        for part in ("weight", "bias"):
            kept[f"{layer}.mlp.wo.{part}"] = kept.pop(f"{layer}.output.dense.{part}")
            kept[f"{layer}.mlp.layernorm.{part}"] = kept.pop(f"{layer}.output.LayerNorm.{part}")
    save_file({name: value.clone() for name, value in kept.items()}, tmp_path / "model.safetensors")
    own = {"position_embedding_type": "alibi", "feed_forward_type": kind, "architectures": ["JinaBertForMaskedLM"]}
    change_settings(tmp_path, lambda settings: {**settings, **own, "auto_map": {"AutoModel": "modeling.JinaBertModel"}})
    ours, usage = load_published(tmp_path)
    b, _, given = inputs(theirs)
    with torch.inference_mode():
        x = ours(given, b.layout).x
        for row, length in enumerate(LENGTHS):
            wanted = jina(kept, b.ids[row, :length], given.types[row, :length], 2, gate)
            assert difference(wanted, x[row, :length]) < TOLERANCE
    check_jina_gradients(kept, b, given, ours, gate)
    save_published(ours, ours.config, tmp_path / "out", usage)
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[name], kept[name]) for name in kept)
    assert load_published(tmp_path / "out").model.config == ours.config
    save_published(ours, ours.config, tmp_path / "bare")
    assert load_published(tmp_path / "bare").model.config == ours.config
    rename(tmp_path, lambda name: name, **{"bert.encoder.layer.0.attention.self.layer_norm_q.weight": torch.ones(16)})
    with pytest.raises(UserError, match=r"unknown tensor 'bert.encoder.layer.0.attention.self.layer_norm_q.weight'"):
        load_published(tmp_path)


def check_jina_gradients(
    tensors: dict[str, Tensor], b: Batch, given: TokenInputs, ours: Any, gate: Callable[[Tensor], Tensor]
) -> None:
    """There is no class of transformers: Jina v2 is code in its folder, which is not run. So the reference is the
    function `jina`, which is written from the paper.
    """
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    rows = [jina(leaves, b.ids[row, :length], given.types[row, :length], 2, gate) for row, length in enumerate(LENGTHS)]
    sum_randomly(torch.cat(rows)).backward()
    mine = deepcopy(ours)
    sum_randomly(mine(given, b.layout).x[b.layout.mask]).backward()
    for name, gradient in published_gradients(mine, "bert").items():
        wanted = leaves[name].grad  # None for the head, which the features do not read
        assert difference(torch.zeros_like(gradient) if wanted is None else wanted, gradient) < 1e-4, name


def test_the_head_of_deberta_v3_is_read_and_that_of_its_discriminator_left_out(tmp_path: Path) -> None:
    settings = model("DebertaV2", "ForMaskedLM", "small").config
    settings.legacy = False
    theirs = T.DebertaV2ForMaskedLM(settings).eval()
    perturb(theirs, 0.2, 1)
    theirs.save_pretrained(tmp_path)
    rename(tmp_path, lambda name: name, **{"mask_predictions.dense.weight": torch.ones(16, 16)})
    ours, usage = load_published(tmp_path)
    save_published(ours, ours.config, tmp_path / "out", usage)
    back = T.DebertaV2ForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert back.legacy
    b, given, ours_given = inputs(theirs)
    with torch.inference_mode():
        wanted = theirs(**given).logits
        assert difference(wanted, logits(ours, ours_given, b.layout), b.layout.mask) < TOLERANCE
        assert difference(wanted, back(**given).logits, b.layout.mask) < TOLERANCE


@pytest.mark.parametrize(("span", "reach"), [(256, 512), (32, 128), (8, 24)])
def test_the_buckets_of_deberta_are_theirs(span: int, reach: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = torch.arange(-1200, 1201)[None, None]
    ours = Disentangled(DisentangledConfig(1, span, reach), 4)._buckets(distance)
    assert torch.equal(make_log_bucket_position(distance, span, reach).long(), ours)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedding_size": 12}, "embedding_size is 12"),
        ({"conv_kernel_size": 2}, "convolution.taps is 2"),
        ({"conv_groups": 2}, "conv_groups is 2"),
        ({"pos_att_type": ["c2c"]}, r"pos_att_type is \['c2c'\]; name at least one of p2c, c2p"),
        ({"pos_att_type": None}, r"pos_att_type is \[\]"),
        ({"relative_attention": False}, r"pos_att_type is \['p2c', 'c2p'\]"),
        ({"position_buckets": 1}, "span 1 and reach 24"),
    ],
)
def test_what_deberta_cannot_be_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    model("DebertaV2", "Model", "small").save_pretrained(tmp_path)
    change_settings(tmp_path, lambda values: {**values, **settings})
    with pytest.raises(UserError, match=message):
        load_published(tmp_path)


def test_packed_documents_do_not_know_of_each_other() -> None:
    """The convolution of DeBERTa v2, and the share of mask tokens in ESM-2."""
    convolution = DocumentConvolution(6, 3)
    torch.nn.init.normal_(convolution.product.weight)
    embed = TokenDropoutEmbedConfig(mask_id=2).build(6, 9, 20)
    torch.nn.init.normal_(embed.table)
    generator, layout = torch.Generator().manual_seed(0), Layout.packed([[3, 5, 1]], 11)
    ids, x = torch.randint(0, 9, (1, 11), generator=generator), torch.randn(1, 11, 6, generator=generator)
    ids[0, :2] = 2
    whole, vectors = convolution(x, layout), embed(ids, layout)[0]
    for start, end in ((0, 3), (3, 8), (8, 9)):
        alone, columns = Layout.full(1, end - start), slice(start, end)
        torch.testing.assert_close(whole[:, columns], convolution(x[:, columns], alone))
        torch.testing.assert_close(vectors[:, columns], embed(ids[:, columns], alone)[0])


def test_esm_keeps_its_frequencies_and_scales_by_the_share_of_masks(tmp_path: Path) -> None:
    """Files of ESM-2 have frequencies in 16 bits, which differ from computed ones."""
    theirs = model("Esm", "ForMaskedLM", "small")
    exact = theirs.esm.rotary_embeddings.inv_freq.clone()
    theirs.esm.rotary_embeddings.inv_freq.copy_(exact * torch.tensor([1.0, 1.01, 0.98, 1.02]))
    pair = twins(theirs, tmp_path / "theirs")
    b, given, ours_given = inputs(theirs)
    b.ids[0, :5] = theirs.config.mask_token_id
    with torch.inference_mode():
        wanted = theirs(**given).logits
        assert difference(wanted, logits(pair.ours, ours_given, b.layout), b.layout.mask) < TOLERANCE
        theirs.esm.rotary_embeddings.inv_freq.copy_(exact)
        assert difference(wanted, theirs(**given).logits, b.layout.mask) > 100 * TOLERANCE
    save_published(pair.ours, pair.ours.config, tmp_path / "out", pair.usage)
    back = T.EsmForMaskedLM.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        assert difference(wanted, back(**given).logits, b.layout.mask) < TOLERANCE
    old = "esm.encoder.layer.{}.attention.self.rotary_embeddings"  # once per layer
    more = {f"{old.format(1)}.inv_freq": back.esm.rotary_embeddings.inv_freq}
    rename(tmp_path / "out", lambda name: name.replace("esm.rotary_embeddings", old.format(0)), **more)
    ours = load_published(tmp_path / "out").model
    assert difference(wanted, logits(ours, ours_given, b.layout), b.layout.mask) < TOLERANCE


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("stem", ["Albert", "Electra", "DebertaV2", "Esm", "NomicBert", "Gte", "EuroBert", "Jina"])
def test_the_engine_reads_what_torch_reads(stem: str, form: Any, tmp_path: Path) -> None:
    theirs = model("Bert" if stem == "Jina" else stem, "Model", "small")
    pair = twins(theirs, tmp_path)
    ours = pair.ours
    if stem == "Jina":
        settings = {"position_embedding_type": "alibi", "feed_forward_type": "geglu"}
        settings = {**json.loads((tmp_path / "config.json").read_text()), **settings}
        from headway.formats.settings import Settings

        ours = families()["bert"].read(Settings({**families()["bert"].defaults, **settings}, "jina"), ()).build().eval()
        perturb(ours, 0.2, 1)
    quantise(ours.requires_grad_(False), form)
    b, _, ours_given = inputs(theirs)
    with torch.inference_mode():
        wanted = ours(ours_given, b.layout).x
        use_programs(ours)
        assert ours.stack.program is not None
        assert difference(wanted, ours(ours_given, b.layout).x, b.layout.mask) < 1e-3


@pytest.mark.parametrize(
    "stem",
    ["Bert", "Roberta", "DistilBert", "ModernBert", "Electra", "DebertaV2", "Esm", "NomicBert", "Gte", "EuroBert"],
)
def test_a_classifier_made_of_a_model_has_its_familys_head(stem: str, tmp_path: Path) -> None:
    theirs = model(stem, "ForMaskedLM", "small")
    theirs.save_pretrained(tmp_path)
    config, family = load_published(tmp_path).model.config, families()[theirs.config.model_type]
    head = classification_head(config, family.name)
    assert head is not None
    tuned = replace(config, heads={"classes": replace(head, outputs=7, dropout=0.3)})
    assert can_express(family, tuned)
    wanted = load_published_classifier(stem, tmp_path / "classifier")
    assert replace(head, outputs=3) == replace(wanted, dropout=head.dropout)


def load_published_classifier(stem: str, folder: Path) -> Any:
    model(stem, "ForSequenceClassification", "small").save_pretrained(folder)
    return load_published(folder).model.config.heads["classes"]


def test_embedding_gemma_attends_both_ways_within_half_its_window(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    settings = T.Gemma3TextConfig(
        **sizes, intermediate_size=24, vocab_size=53, sliding_window=6, use_bidirectional_attention=True,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], pad_token_id=0,
    )  # fmt: skip
    pair = twins(T.Gemma3TextModel(settings), tmp_path / "theirs")
    assert [block.mixer.pattern for block in pair.ours.config.stack.blocks] == [Local(3), Full(), Local(3)]
    check_both_ways(pair, T.Gemma3TextModel, tmp_path)


@pytest.mark.parametrize("window", [None, 4])
def test_a_decoder_with_is_causal_false_attends_both_ways(window: int | None, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    settings = T.Qwen2Config(**sizes, **more, intermediate_size=24, vocab_size=53, pad_token_id=0, is_causal=False)
    pair = twins(T.Qwen2Model(settings), tmp_path / "theirs")
    patterns = [block.mixer.pattern for block in pair.ours.config.stack.blocks]
    assert patterns == [Full(), Local(window) if window else Full()]
    check_both_ways(pair, T.Qwen2Model, tmp_path)


def check_both_ways(pair: Twins, kind: Any, folder: Path) -> None:
    b = batch(LENGTHS, 53)
    save_published(pair.ours, pair.ours.config, folder / "out", pair.usage)
    back = kind.from_pretrained(folder / "out", attn_implementation="eager").eval()
    pair.theirs.set_attn_implementation("eager")
    check_gradients(
        pair,
        lambda peer: peer(input_ids=b.ids, attention_mask=b.mask).last_hidden_state[b.layout.mask],
        lambda mine: mine(b.ids, b.layout).x[b.layout.mask],
        folder / "gradients",
    )
    with torch.inference_mode():
        wanted = pair.theirs(input_ids=b.ids, attention_mask=b.mask).last_hidden_state
        assert difference(wanted, pair.ours(b.ids, b.layout).x, b.layout.mask) < TOLERANCE
        assert (
            difference(wanted, back(input_ids=b.ids, attention_mask=b.mask).last_hidden_state, b.layout.mask)
            < TOLERANCE
        )
