"""What a lens shows beside the last layer's predictions, by every way to it, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lens_models import TEXT, save_models
from serving import server
from starlette.testclient import TestClient

import headway as hw
from headway.app.cli import main as cli
from headway.errors import UserError
from headway.layout import Layout
from headway.predict.logit_lens import ScoredToken, _neighbours, vector_statistics
from headway.serve.app import create_app
from headway.serve.engine_loop import open_engine_loop
from headway.serve.interfaces import ServerSettings
from headway.serve.models import LoadOptions, ServedModels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    save_models(place)
    return place


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    models = ServedModels([], [folder], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with server(models, ServerSettings(log=False)) as url:
        yield url


def load(folder: Path, name: str) -> hw.Model:
    return hw.load(folder / name, "cpu", backend="torch")


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 2.0])
def test_the_next_token_at_another_temperature(folder: Path, temperature: float) -> None:
    model = load(folder, "decoder")
    lens = model.lens(TEXT)
    logits = model.logits([[token.id for token in lens.tokens]])[0, -1].double()
    log_total = lens.next.log_totals[lens.next.temperatures.index(temperature)]
    probabilities = [math.exp(token.score / temperature - log_total) for token in lens.next.candidates]
    wanted = (logits / temperature).softmax(-1)
    each = lens.each[3]
    here = model.logits([[token.id for token in lens.tokens]])[0, 3].double()
    assert each.entropy == pytest.approx(float(torch.distributions.Categorical(logits=here).entropy()), rel=1e-5)
    assert each.log_totals[each.temperatures.index(temperature)] == pytest.approx(
        float((here / temperature).logsumexp(-1)), rel=1e-5
    )
    assert [one.position for one in lens.each] == list(range(6))
    assert lens.next.position == 5
    assert lens.next.entropy == pytest.approx(lens.each[5].entropy, rel=1e-5)
    assert probabilities == pytest.approx([float(wanted[token.id]) for token in lens.next.candidates], abs=1e-6)


def test_a_long_text_has_one_distribution(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(folder, "decoder")
    lens = model.lens(TEXT)
    monkeypatch.setattr("headway.predict.logit_lens._MAX_LOGITS_IN_ALL", 10)
    longer = model.lens(TEXT)
    assert longer.each == []
    assert longer.next == lens.next


def test_neighbours_are_those_of_the_largest_cosine_without_what_all_share(folder: Path) -> None:
    model = load(folder, "decoder")
    weight, random = model.module.heads["vocabulary"].weight, torch.Generator().manual_seed(0)
    common = torch.randn(16, generator=random), torch.randn(len(weight), 1, generator=random)
    weight.data = 0.1 * weight.data + 3 + 5 * common[1] * common[0]  # a mean, and one direction
    lens, centred = model.lens(TEXT, neighbours=3), weight.data - weight.data.mean(0)
    direction = torch.linalg.svd(centred).Vh[0]
    rows = centred - (centred @ direction)[:, None] * direction
    for token, nearest in zip(lens.tokens, lens.neighbours, strict=True):
        cosines = torch.nn.functional.cosine_similarity(rows[token.id], rows, dim=-1)
        order = [number for number in cosines.argsort(descending=True).tolist() if number != token.id][:3]
        assert [near.id for near in nearest] == order
        assert [near.score for near in nearest] == pytest.approx(cosines[order].tolist(), abs=1e-3)
    assert lens.neighbours[0] == lens.neighbours[4]  # of one word
    num_tokens = len({token.id for token in lens.tokens})
    products = (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)]
    deviation = float(products.square().mean().sqrt() / rows.square().sum(-1).mean())
    chance = deviation * math.sqrt(2 * math.log(num_tokens * (len(rows) - 1)))
    assert lens.chance == pytest.approx(min(1, chance), abs=1e-3)
    assert model.lens(TEXT).chance == 0
    statistics = model.vector_statistics
    assert model.lens(TEXT, neighbours=3) == lens
    assert model.vector_statistics is statistics  # computed once
    assert len(model.lens(TEXT, neighbours=100).neighbours[0]) == model.module.config.vocab_size - 1


def test_the_chance_of_random_vectors_is_that_of_their_width() -> None:
    """Random vectors that share a direction, with 3 clusters among them: only members of a cluster are above chance."""
    random = torch.Generator().manual_seed(0)
    table = torch.randn(1000, 64, generator=random)
    table[:30] = 0.3 * table[:30] + torch.randn(3, 64, generator=random).repeat_interleave(10, 0)
    table += 2 + 3 * torch.randn(1000, 1, generator=random)
    nearest, chance = _neighbours(table, vector_statistics(table), torch.arange(60), 9, lambda values, count: [
        [ScoredToken("", int(i), float(v)) for v, i in zip(*row)] for row in zip(*values.topk(count))
    ])  # fmt: skip
    assert chance == pytest.approx(math.sqrt(2 * math.log(60 * 999) / 63), rel=0.1)
    for token in range(30):
        assert {near.id for near in nearest[token] if near.score > chance} == {
            other for other in range(30) if other // 10 == token // 10 and other != token
        }
    assert sum(near.score > chance for token in range(30, 60) for near in nearest[token]) <= 2


def test_a_recurrent_state_changes_with_each_token(folder: Path) -> None:
    model = load(folder, "lstm")
    lens, mixer, states = model.lens(TEXT), model.module.stack.blocks[1].mixer, []
    ids = torch.tensor([[token.id for token in lens.tokens]])
    stack_states = model.module.stack.initial_states(1, 8, like=next(model.module.parameters()))
    for step in range(ids.shape[1]):  # token by token
        x = model.module.embed.norm(model.module.embed.look_up(ids[:, step : step + 1]))
        _, stack_states, _ = model.module.stack(x, Layout(torch.tensor([[step]])), stack_states)
        states.append(mixer.final(stack_states[1])[0][0].detach().clone())
    for step in range(1, len(states)):
        before, after = states[step - 1], states[step]
        wanted = float((after - before).norm() / (after.norm() + before.norm()))
        assert lens.layers[1].changes[step] == pytest.approx(wanted, abs=1e-5)
    assert lens.layers[1].changes[0] == pytest.approx(1)
    assert load(folder, "decoder").lens(TEXT).layers[0].changes == []


def test_a_masked_model_predicts_its_mask(folder: Path) -> None:
    model = load(folder, "masked")
    text = "the cat [MASK] on the mat"
    lens = model.lens(text, top=3)
    [candidates] = model.fill(text, top=3)
    assert lens.masked
    assert lens.tokens[lens.next.position].text == "[MASK]"
    best = lens.layers[-1].predictions[lens.next.position]
    assert [token.id for token in best] == [candidate.id for candidate in candidates]
    assert [token.score for token in best] == pytest.approx([candidate.probability for candidate in candidates])
    attention = model.attention(text)
    assert attention.symbols[lens.next.position] == "[MASK]"
    assert len(attention.symbols) == len(lens.tokens)


def test_a_translator_predicts_its_target(folder: Path) -> None:
    model = load(folder, "translator")
    lens, attention = model.lens(TEXT, target="the mat sat"), model.attention(TEXT, target="the mat sat")
    ids = [[token.id for token in lens.tokens]]
    assert len(lens.tokens) == len(attention.symbols) == 4
    logits = model.logits(ids, source=[model.codec.encode(TEXT)])[0]
    best = logits.softmax(-1).topk(5)
    assert [[token.id for token in row] for row in lens.layers[-1].predictions] == best.indices.tolist()
    assert [[token.score for token in row] for row in lens.layers[-1].predictions] == best.values.tolist()
    assert len(lens.layers) == 2


def test_a_server_shows_the_same(url: str, folder: Path) -> None:
    for name in ("decoder", "lstm", "masked"):
        model, remote = load(folder, name), hw.connect(url, model=name)
        assert remote.lens(TEXT, top=2, neighbours=2) == model.lens(TEXT, top=2, neighbours=2)
    here, there = load(folder, "decoder").attention(TEXT), hw.connect(url, model="decoder").attention(TEXT)
    assert there.symbols == here.symbols
    assert there.across == here.across == ()
    for name, weights in here.maps.items():
        torch.testing.assert_close(there.maps[name], weights, rtol=0, atol=5.1e-5)
    assert "attention" not in hw.connect(url, model="lstm").verbs


def test_the_command_prints_each_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["lens", str(folder / "lstm"), "--text", TEXT, "--neighbours", "2", "--backend", "torch"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("layer 1", "layer 2", "near cat:", "change of state, layer 2:"))
    assert cli.main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    lens = load(folder, "lstm").lens(TEXT, neighbours=2)
    assert answer["layers"][1]["predictions"][0][0]["score"] == lens.layers[1].predictions[0][0].score
    assert answer["next"]["log_totals"] == lens.next.log_totals


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("decoder", {"text": " "}, "the text is empty; pass at least one word"),
        ("decoder", {"text": " ".join(["cat"] * 10_000)}, "has 10,000 tokens"),
        ("masked", {"text": " ".join(["cat"] * 100)}, "has 100 tokens, but the model takes at most 64"),
        ("decoder", {"text": "cat", "top": 0}, "top"),
        ("decoder", {"text": "cat", "top": 101}, "top is 101; use 1 to 100"),
        ("decoder", {"text": "cat", "neighbours": -1}, "neighbours"),
        ("classes", {"text": "cat"}, "cannot show what its layers predict"),
    ],
)
def test_what_a_lens_refuses(folder: Path, url: str, name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(folder, name).lens(**arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=message.partition(",")[0]):
        hw.connect(url, model=name).lens(**arguments)


def test_a_word_outside_the_vocabulary_is_the_unknown_token(folder: Path) -> None:
    lens = load(folder, "decoder").lens("the dog")
    assert lens.tokens[1].id == load(folder, "decoder").codec.unk_id


def test_what_attention_over_http_refuses(folder: Path) -> None:
    models = ServedModels([], [folder], LoadOptions(device="cpu", backend="torch"), open_engine_loop)
    with TestClient(create_app(models, ServerSettings(log=False)), base_url="http://127.0.0.1") as client:
        for name, text, message in (
            ("decoder", "", "the text is empty"),
            ("decoder", " ".join(["cat"] * 10_000), "has 10,000 tokens, and the limit is 256"),
            ("lstm", "cat", "cannot show its attention to text"),
        ):
            answer = client.post("/v1/attention", json={"model": name, "text": text})
            assert answer.status_code == 400
            assert message in answer.json()["error"]["message"]
