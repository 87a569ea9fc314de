"""Published decoders on the CPU engine: greedy tokens of transformers in fp32, and steps of torch in int8 and int4."""

from __future__ import annotations

import copy

import pytest
import torch
from decoder_models import CONFIGS, SYMBOLS, continued, greedy, make
from twins import Twins, batch, rows, twins

from headway.engine import Engine, quantise
from headway.nn.models import Prompt

STEMS = ("Qwen2Moe", "Qwen3Moe", "Olmoe", "GraniteMoe", "Granite", "Glm", "Glm4", "Glm4Moe", "Cohere", "Cohere2")
STEMS += ("GptOss", "GPTBigCode", "Olmo3", "Ministral", "Starcoder2")
NAMES = {f"{stem}ForCausalLM" for stem in STEMS}


@pytest.fixture(
    scope="module", params=[key for key in CONFIGS if key[0] in NAMES], ids=lambda key: f"{key[0]}-{key[1]}"
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    torch.manual_seed(5)
    return twins(make(*request.param), tmp_path_factory.mktemp("theirs"), noise=0.1)


def test_greedy_tokens(pair: Twins) -> None:
    given = batch([11, 3], SYMBOLS, seed=3)
    ours = greedy(Engine(pair.ours, threads=2), given)
    for prompt, found in zip(rows(given), ours.tolist(), strict=True):
        assert continued(pair.theirs, prompt, found) == found


def test_quantised_steps_are_those_of_torch(pair: Twins) -> None:
    """Each family in both forms, each of its two models in one: formats and families meet in no code."""
    form = "int8" if pair.theirs.config.vocab_size == SYMBOLS else "int4"
    given, tokens = batch([11, 3], SYMBOLS, seed=3), batch([6, 6], SYMBOLS, seed=4).ids
    model = quantise(copy.deepcopy(pair.ours), form)
    engine, prompt = Engine(model), Prompt(given.ids, given.layout)
    with torch.inference_mode():
        _, theirs = model.start(prompt, 40)
        ours = engine.adopt(theirs)
        errors = []
        for column in tokens.T:
            wanted, theirs = model.step(column, theirs)
            found, ours = engine.step(column, ours)
            errors.append((found - wanted).norm(dim=-1) / wanted.norm(dim=-1))
    # Most tokens: last bits of the input of a product round a number here and there to the next of its 255 values, and
    # two experts that are nearly as probable change places.
    assert torch.cat(errors).median() < 0.03
