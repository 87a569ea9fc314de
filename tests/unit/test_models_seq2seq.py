"""The models of 2014 in small: how they start, and that each of them generates as it trains."""

from __future__ import annotations

import pytest
import torch

from headway.config import override
from headway.errors import ConfigError
from headway.layout import Layout
from headway.nn.models import EncoderDecoder, Prompt, VocabularyHeadConfig, build
from headway.nn.models.presets import preset
from headway.nn.parts.init import InitConfig

SMALL = {"width": 8, "symbols": 13}
MODELS = {
    "seq2seq-lstm-2014": {**SMALL, "depth": 2},
    "seq2seq-gru-2014": {**SMALL, "cells": 10},
    "seq2seq-gru-2014-full": {**SMALL, "cells": 10},
    "seq2seq-gru-rnnenc": {**SMALL, "cells": 10},
    "seq2seq-gru-rnnsearch": {**SMALL, "cells": 10},
}


def small(name: str) -> EncoderDecoder:
    model = build(override(preset(name), {**MODELS[name], "init": {"uniform": 0.5}}))
    assert isinstance(model, EncoderDecoder)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_it_generates_as_it_trains(name: str) -> None:
    model = small(name).double()
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randint(0, 13, (3, n), generator=generator) for n in (6, 7))
    where, lengths = Layout.padded([6, 1, 4]), torch.tensor([1, 3, 2])
    with torch.no_grad():
        whole = model.heads["vocabulary"](model(source, where, target, Layout.full(3, 7)).x)
        logits, decoding = model.start(Prompt(target[:, :3], Layout.padded(lengths, 3), source, where), 7)
        for step in range(4):
            torch.testing.assert_close(logits, whole[torch.arange(3), lengths - 1 + step])
            logits, decoding = model.step(target[torch.arange(3), lengths + step], decoding)
    assert whole.std() > 0.01


def test_uniform_draws_all_weights_and_biases() -> None:
    model = build(override(preset("seq2seq-lstm-2014"), {"width": 16, "depth": 2, "symbols": 30}))
    for name, parameter in model.named_parameters():
        assert 0.05 < parameter.abs().max() <= 0.08, name
        assert parameter.std().item() == pytest.approx(0.08 / 3**0.5, rel=0.25), name
    with pytest.raises(ConfigError, match="bound above 0"):
        InitConfig(uniform=0.0)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="set at least 1 unit"):
        VocabularyHeadConfig(maxout=0)
    with pytest.raises(ConfigError, match="cannot be shared with a head of width 5"):
        build(override(preset("seq2seq-gru-rnnsearch"), {**SMALL, "cells": 10, "tie": "head"}))
