"""A model that holds conversations, for the tests of those who talk with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from headway.codecs import train_codec
from headway.config import override
from headway.domains.text.recipes import modern_decoder
from headway.formats import native
from headway.formats.usage import Usage
from headway.nn.models import build

# The user and the assistant in turn, no system; a turn ends with a symbol that the tokenizer does not know as its end.
TEMPLATE = """\
{% if messages[0].role == "system" %}{{ raise_exception("there is no system here") }}{% endif %}
{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}<|stop|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
SPECIAL = ("<|user|>", "<|assistant|>", "<|stop|>", "<|endoftext|>")


def echo_model(
    folder: Path,
    context: int = 48,
    template: str | None = TEMPLATE,
    says: Sequence[str] = ("abc",),
    special: Sequence[str] = SPECIAL,
) -> Path:
    """A model that says "abc" and ends its turn, whatever it is asked: each symbol has a place that tells the next. It
    may say other texts and special symbols, none of them twice.
    """
    codec = train_codec("byte", ["any"], special=special)
    parts = [[codec.token_id(part)] if part in special else codec.encode(part) for part in says]
    said = [codec.token_id("<|assistant|>"), *(token for part in parts for token in part), codec.token_id("<|stop|>")]
    size = {"symbols": codec.vocab_size, "context": context}
    width = max(8, -(-len(said) // 8) * 8)
    config = override(modern_decoder(width=width, depth=1, heads=1, window=64, vocab_size=1), size)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for place, (now, then) in enumerate(pairwise(said)):
            model.get_parameter("embed.table")[now, place] = 1.0
            model.get_parameter("heads.vocabulary.project.weight")[then, place] = 1.0
    native.save_model(model, config, folder)
    codec.save(folder)
    Usage(template=template).save(folder)
    return folder
