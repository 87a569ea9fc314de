"""Models without training that clients ask for: one that calls a tool, and one that ranks documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from headway.codecs import train_codec
from headway.config import override
from headway.formats.native import save_model
from headway.formats.usage import Usage
from headway.nn.models import build
from headway.nn.models.presets import preset

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
QUERY = "how are pearls made in the sea"
DOCUMENTS = ["oysters make them", "a car needs fuel", "how are pearls made", "the sea is deep and cold and wide", "no"]


def caller(folder: Path, template: str) -> Path:
    """A model that writes CALL over and over: its token depends on the position alone."""
    said = f"{CALL}\n"
    codec = train_codec("byte", [said])
    size = {"width": 128, "symbols": codec.vocab_size, "context": 512, "depth": 1, "heads": 1, "tie": "none"}
    config: Any = override(preset("gpt2"), size)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("stack.norm.weight").fill_(1)
        tokens = codec.encode(said)
        for position in range(config.context):
            model.get_parameter("embed.positions.table")[position, position % len(tokens)] = 1.0
        for position, token in enumerate(tokens):
            model.get_parameter("heads.vocabulary.project.weight")[token, (position - 1) % len(tokens)] = 1.0
    folder.mkdir()
    save_model(model, config, folder)
    codec.save(folder)
    Usage(template=template).save(folder)
    return folder


def ranker(folder: Path) -> Path:
    """A small cross-encoder as transformers saves one."""
    words = sorted({word for text in (QUERY, *DOCUMENTS) for word in text.split()})
    names: Any = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    config = transformers.BertConfig(
        vocab_size=len(names), num_labels=1, pad_token_id=0, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=24,
    )  # fmt: skip
    torch.manual_seed(5)
    model: Any = transformers.BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4
    model.eval().save_pretrained(folder)
    transformers.BertTokenizer(names).save_pretrained(folder)
    return folder
