"""A config.json without weights describes the same model as the whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from headway.app.cli import main as cli
from headway.formats.published import described_config, published_config

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 67}
TEXT = {**SIZES, "max_position_embeddings": 40, "pad_token_id": 0}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 4}
SEQ2SEQ = {
    **{"vocab_size": 67, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 40},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24},
    **{"pad_token_id": 0, "decoder_start_token_id": 0},
}
T5 = {"vocab_size": 67, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
GEMMA = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
CLASSES: dict[str, dict[str, Any]] = {
    **{f"Bert{head}": TEXT for head in ("Model", "ForMaskedLM", "ForPreTraining", "ForNextSentencePrediction")},
    **{f"{stem}ForSequenceClassification": TEXT for stem in ("Bert", "Roberta", "XLMRoberta", "MPNet", "Llama")},
    **{f"{stem}ForTokenClassification": TEXT for stem in ("Bert", "Roberta", "ModernBert")},
    **{f"{stem}ForQuestionAnswering": TEXT for stem in ("Bert", "Roberta", "MPNet")},
    **{f"{stem}ForMaskedLM": TEXT for stem in ("Roberta", "ModernBert")},
    **{f"{stem}Model": TEXT for stem in ("Roberta", "ModernBert", "MPNet")},
    **{f"Electra{head}": {**TEXT, "embedding_size": 8} for head in ("ForPreTraining", "ForMaskedLM")},
    **{f"DebertaV2{head}": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p"]}
       for head in ("ForMaskedLM", "ForSequenceClassification")},
    **{f"Albert{head}": {**TEXT, "embedding_size": 8} for head in ("Model", "ForMaskedLM", "ForPreTraining")},
    "EsmForMaskedLM": {**TEXT, "position_embedding_type": "rotary"},
    "EsmModel": {**TEXT, "position_embedding_type": "rotary"},
    **{f"{stem}{head}": TEXT for stem in ("NomicBert", "Gte")
       for head in ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")},
    **{f"EuroBert{head}": TEXT for head in ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")},
    **{f"DistilBert{head}": {"vocab_size": 67, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
       for head in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")},
    **{f"{stem}{head}": IMAGE for stem in ("ViT", "DeiT") for head in ("Model", "ForImageClassification")},
    "DeiTForImageClassificationWithTeacher": IMAGE,
    **{f"{stem}ForCausalLM": {**TEXT, "num_key_value_heads": 2} for stem in ("Llama", "Qwen3", "Gemma2", "GPTNeoX")},
    "T5ForConditionalGeneration": T5,
    "UMT5ForConditionalGeneration": T5,
    **{f"{stem}EncoderModel": T5 for stem in ("T5", "MT5", "UMT5")},
    "T5GemmaForConditionalGeneration": {"encoder": GEMMA, "decoder": GEMMA, "vocab_size": 67},
    "BartForSequenceClassification": {**SEQ2SEQ, "decoder_start_token_id": 2},
    "BartForConditionalGeneration": SEQ2SEQ,
    "MarianMTModel": SEQ2SEQ,
    **{f"{stem}ForConditionalGeneration": SEQ2SEQ for stem in ("MBart", "M2M100", "Pegasus")},
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_heads_follow_from_the_class(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_class = getattr(transformers, name)
    model_class(model_class.config_class(**CLASSES[name])).save_pretrained(tmp_path)
    whole = published_config(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert described_config(tmp_path) == whole
    assert cli.main(["show", str(tmp_path)]) == 0
    assert "parameters" in capsys.readouterr().out


def test_there_is_a_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {**TEXT, "num_hidden_layers": 10**9}
    transformers.LlamaConfig(**settings).save_pretrained(tmp_path)
    assert cli.main(["show", str(tmp_path)]) == cli.USER_ERROR
    assert "num_hidden_layers is 1000000000, too many" in capsys.readouterr().err
