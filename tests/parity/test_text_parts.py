"""Text parts of models of images and texts, and experts in MXFP4, against transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, SMALL, SYMBOLS, copied, logits, make, ours_of, without
from safetensors.torch import load_file, save_file
from twins import batch, difference, perturb

from headway.errors import UserError
from headway.formats.published import described_config, load_published, save_published

T = pytest.importorskip("transformers")
GIVEN = batch([24, 5, 17], SYMBOLS)
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
WRAPPERS = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3_text", CONFIGS["Gemma3ForCausalLM", "large"], {}),
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        "mistral",
        T.MistralConfig(**SMALL, sliding_window=None, head_dim=8),
        {"tie_word_embeddings": False},
    ),
}


def wrapped(kind: str, folder: Path) -> Any:
    """A model of images and texts of transformers, and its files."""
    name, _, text, settings = WRAPPERS[kind]
    cls = getattr(T, name)
    torch.manual_seed(5)
    theirs = cls(cls.config_class(text_config=text.to_dict(), vision_config=VISION, eos_token_id=[1, 7], **settings))
    perturb(theirs.eval(), 0.1, 1)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_is_used_alone(
    kind: str, old_names: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = wrapped(kind, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors") if old_names else dict(theirs.state_dict())
    if not old_names and "lm_head.weight" in tensors:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].clone()
    assert any("language_model." in name for name in tensors)
    folder = copied(tmp_path / "a", tmp_path / "b", tensors)
    with caplog.at_level(logging.WARNING):
        ours, usage = load_published(folder)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder} is a {kind} model; its text part is used without images"
    ]
    with torch.inference_mode():
        wanted = theirs(GIVEN.ids, attention_mask=GIVEN.mask).logits
    assert difference(ours_of(ours, GIVEN), wanted, GIVEN.layout.mask) < 1e-5
    assert usage.ends == (1, 7)
    assert save_published(ours, ours.config, tmp_path / "c", usage) == WRAPPERS[kind][1]
    back = T.AutoModelForCausalLM.from_pretrained(tmp_path / "c").eval()
    assert difference(logits(back, GIVEN), wanted, GIVEN.layout.mask) < 1e-5
    (folder / "model.safetensors").unlink()
    assert described_config(folder) == ours.config


def test_a_text_part_of_another_family_is_refused(tmp_path: Path) -> None:
    wrapped("mistral3", tmp_path / "a")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    other = copied(tmp_path / "a", tmp_path / "b", text_config={**values["text_config"], "model_type": "mamba9"})
    with pytest.raises(UserError, match=r"text_config: unknown family 'mamba9'"):
        load_published(other)
    with pytest.raises(UserError, match=r"text_config lacks 'vocab_size'|text_config lacks 'hidden_size'"):
        load_published(copied(tmp_path / "a", tmp_path / "c", text_config=None))


def in_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Write the experts of a folder in blocks of 32 codes, and return the tensors that they stand for."""
    tensors, draws = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(3)
    magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    stored = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")) and tensor.dim() == 3:
            count, columns, rows = tensor.shape
            codes = torch.randint(0, 16, (count, rows, columns // 32, 32), generator=draws)
            scales = torch.randint(120, 128, codes.shape[:3], generator=draws)
            values = torch.tensor([*magnitudes, *(-value for value in magnitudes)])[codes]
            values = values * 2.0 ** (scales - 127)[..., None]
            del stored[name]
            stored[f"{name}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
            stored[f"{name}_scales"] = scales.to(torch.uint8)
            tensors[name] = values.flatten(2).transpose(1, 2).contiguous()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return tensors


def test_experts_in_mxfp4_are_decoded_exactly(tmp_path: Path) -> None:
    torch.manual_seed(5)
    sizes = {**without(SMALL, "hidden_size", "intermediate_size"), "hidden_size": 64, "intermediate_size": 32}
    theirs = T.GptOssForCausalLM(T.GptOssConfig(**sizes, head_dim=16, num_local_experts=4, num_experts_per_tok=2))
    perturb(theirs.eval(), 0.1, 1)
    theirs.save_pretrained(tmp_path / "a")
    plain = copied(tmp_path / "a", tmp_path / "b", in_mxfp4(tmp_path / "a"), quantization_config=None)
    ours, wanted = load_published(tmp_path / "a"), load_published(plain)
    state = wanted.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.model.state_dict().items())
    back = T.GptOssForCausalLM.from_pretrained(tmp_path / "a", quantization_config=T.Mxfp4Config(dequantize=True))
    assert difference(ours_of(ours.model, GIVEN), logits(back.eval().float(), GIVEN), GIVEN.layout.mask) < 1e-5
    save_published(ours.model, ours.model.config, tmp_path / "c", ours.usage)
    assert "quantization_config" not in json.loads((tmp_path / "c" / "config.json").read_text())
    assert load_file(tmp_path / "c" / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()
    damaged = load_file(tmp_path / "a" / "model.safetensors")
    damaged["model.layers.0.mlp.experts.down_proj_scales"] = torch.zeros(4, 64, 2, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"the parts of model.layers.0.mlp.experts.down_proj do not fit together"):
        load_published(copied(tmp_path / "a", tmp_path / "d", damaged))


def test_stacked_experts_are_written_as_they_were_read(tmp_path: Path) -> None:
    """Two families of which transformers reads stacks alone."""
    for name in ("GptOssForCausalLM", "GraniteMoeForCausalLM"):
        make(name, "small").save_pretrained(tmp_path / name)
        model, usage = load_published(tmp_path / name)
        save_published(model, model.config, tmp_path / f"{name}-back", usage)
        before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in (name, f"{name}-back"))
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
