"""The table of predictors and the methods of a model are the same verbs; one that a model has not is one line."""

from __future__ import annotations

import inspect
import pydoc
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

import headway as hw
from headway import domains
from headway.app import predictors
from headway.app.verb_table import REMOTE_VERBS, declaration
from headway.app.verbs import LocalVerbs, VerbMethod
from headway.formats.native import save_model
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.nn.models import ModelConfig, build, kinds
from headway.nn.models.presets import PRESETS, preset
from processes import Program

NO_VERBS = {"card", "thresholds", "verbs"}  # of the methods that Model has beside those of its handle
SERVED = {name: [each.module for each in serving] for name, serving in domains.verbs().items()}


def methods() -> dict[str, Any]:
    """The verbs that Model has as methods, or as what it computes once."""
    members = {**vars(LocalVerbs), **vars(hw.Model)}
    found = {name: each for name, each in members.items() if not name.startswith("_") and name not in NO_VERBS}
    return {name: getattr(each, "fget", None) or getattr(each, "func", None) or each for name, each in found.items()}


def configs() -> dict[str, ModelConfig]:
    """All that can be made by name, and what fine-tuning makes of some."""
    found = {name: preset(name) for name in PRESETS}
    found |= {name: recipe.model for name, recipe in domains.recipes().items()}
    bert: Any = preset("bert-base")
    return {**found, "bare": replace(bert, heads={}, tie="none")}


def test_every_verb_is_a_method_and_a_row_of_the_table() -> None:
    assert set(methods()) == set(predictors.VERBS) == set(SERVED)
    assert {verb.variant_of for verb in predictors.VERBS.values()} - {None} <= set(predictors.VERBS)


@pytest.mark.parametrize("name", [*SERVED])
def test_a_predictor_takes_what_the_method_takes(name: str) -> None:
    method = list(inspect.signature(methods()[name]).parameters.values())[1:]
    for module in [*SERVED[name], *(["headway.predict.model_evaluation"] if name == "evaluate" else [])]:
        if module.endswith("chess.predictors"):
            pytest.importorskip("chess")
        taken = list(inspect.signature(getattr(import_module(module), name)).parameters.values())[1:]
        assert [(p.name, p.kind, p.default) for p in taken] == [(p.name, p.kind, p.default) for p in method]


def test_one_predictor_of_a_verb_has_its_docstring_and_the_method_shows_it() -> None:
    pytest.importorskip("chess")
    for name, method in methods().items():
        if not isinstance(method, VerbMethod):
            continue
        docs = {inspect.getdoc(predictor) for predictor in predictors.predictors(name)} - {None}
        assert docs == {inspect.getdoc(getattr(hw.Model, name))}, name
        if name in REMOTE_VERBS:
            assert docs == {inspect.getdoc(getattr(hw.RemoteModel, name))}, name


def test_help_shows_the_predictor() -> None:
    with torch.device("meta"):
        module = build(preset("gpt-1m"), seed=None)
    model = hw.Model(OpenedModel(module, Usage(), None), Path("m"))
    for method in (model.translate, hw.Model.translate, hw.RemoteModel.translate):
        text = pydoc.render_doc(method, renderer=pydoc.plaintext)
        assert "translate(" in text
        assert "n_best: 'int | None' = None" in text
        assert "Translate a line, or each of several; with `n_best`" in text
    assert "translate(self, lines: 'str | Texts'" in pydoc.render_doc(hw.Model, renderer=pydoc.plaintext)
    assert model.translate.__name__ == "translate"
    assert "self" not in inspect.signature(model.translate).parameters


def test_a_verb_is_served_once() -> None:
    for name, config in configs().items():
        for verb, serving in domains.verbs().items():
            serves = [each for each in serving if getattr(kinds, each.predicate)(config)]
            assert len(serves) < 2, (name, verb, serves)


def test_every_model_has_a_kind_and_something_that_it_can() -> None:
    for name, config in configs().items():
        kind, known = kinds.kind_of(config), predictors.verbs(config, Usage(), is_run=False)
        assert kind.split()[1] not in {type(config).__name__.removesuffix("Config")}, name
        assert known, name
        assert ("generate" in known) == (kind == "a language model"), name
        assert "chat" not in known
    talks = predictors.verbs(preset("gpt2"), Usage(template="{{ messages }}"), is_run=True)
    assert talks[:2] == ["generate", "chat"]
    assert "evaluate" in predictors.verbs(preset("bert-base"), Usage(), is_run=True)


@pytest.mark.parametrize(
    ("name", "ask", "message"),
    [
        ("gpt-1m", lambda model: model.translate("a"), "is a language model, which cannot translate; use generate or"),
        (
            "gpt-1m",
            lambda model: model.look("a.png"),
            "is a language model, which cannot show its attention to an image; use attention",
        ),
        (
            "gpt-1m",
            lambda model: model.player(),
            "cannot play chess; .*train one: headway train chess",
        ),
        ("gpt-1m", lambda model: model.policy(), "cannot act as a policy; .*robotics or metaworld"),
        (
            "transformer-base",
            lambda model: model.generate("a"),
            "is an encoder-decoder, which .*; use translate with it",
        ),
        ("transformer-base", lambda model: model.session, "is an encoder-decoder, which cannot continue a prompt"),
        ("transformer-base", lambda model: model.talk, "is an encoder-decoder, which cannot hold a conversation"),
        (
            "bare",
            lambda model: model.fill("a [MASK]"),
            r"is a text model \(heads: none\), .*; use embed",
        ),
        (
            "bare",
            lambda model: model.answer("a", "b"),
            r"is a text model \(heads: none\), which cannot answer questions from a text; .* such as BERT for SQuAD",
        ),
        ("bare", lambda model: model.rerank("a", ["b"]), ".*, which cannot rank documents; .* train reranking --from"),
        ("vit-ti16", lambda model: model.classify("a.png", labels=["a"]), "labels can be chosen only for text"),
        ("spoken-digits", lambda model: model.classify("a.wav", labels=["a"]), "labels can be chosen only for text"),
        (
            "vit-ti16",
            lambda model: model.embed("a.png", prompt="a"),
            "an image model has no prompts; remove the prompt",
        ),
        ("clip-b32", lambda model: model.embed("a.png", prompt="a"), "an image-text model has no prompts; remove"),
        ("masked", lambda model: model.score("a"), "is a masked language model, which cannot score text; use fill or"),
        ("masked", lambda model: model.evaluate("a.txt"), "fine-tune it with --from and evaluate that run"),
        ("cartpole", lambda model: model.generate("a"), "is a trajectory model, .*; use rollout or act with it"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(name: str, ask: Any, message: str) -> None:
    with torch.device("meta"):
        module = build(configs()[name], seed=None)
    model = hw.Model(OpenedModel(module, Usage(), None), Path("m"))
    with pytest.raises(hw.UserError, match=f"^m {message}" if message.startswith("is ") else message) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


def test_a_domain_is_imported_when_its_verb_is_asked_for(tmp_path: Path) -> None:
    code = """
import sys
import headway as hw
from headway.formats.open import OpenedModel
from headway.formats.usage import Usage
from headway.nn.models import build
from headway.nn.models.presets import preset
model = hw.Model(OpenedModel(build(preset("gpt-1m")), Usage(), None), "m")
def there(): return [name for name in sys.modules if name.startswith("headway.domains") and name.endswith("predictors")]
assert not there() and "generate" in model.verbs and not there(), there()
try: model.transcribe("a.wav")
except hw.UserError: pass
assert not there(), there()
model.generate_ids([1], 1)
assert there() == ["headway.domains.text.predictors"], there()
"""
    program = Program(tmp_path, code)
    _, err = program.wait()
    assert program.returncode == 0, err


def test_loading_a_model_imports_little(tmp_path: Path) -> None:
    config = preset("gpt-1m")
    save_model(build(config), config, tmp_path)
    code = """
import sys
import headway as hw
hw.load(sys.argv[1])
there = {name for name in sys.modules if name.split(".")[0] == "headway"}
assert "llvmlite" not in sys.modules
there -= {"headway.engine", "headway.engine.chunks"}  # data types without code
unused = ("app.cli", "learn.report", "learn.trainer", "engine", "environments", "formats.gguf", "formats.families")
assert not {name for name in there if name.startswith(tuple(f"headway.{each}" for each in unused))}, there
assert len(there) < 140, len(there)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_client_binds_arguments_without_torch() -> None:
    """What the source of a predictor declares is what its import has."""
    for verb in REMOTE_VERBS:
        imported = predictors.signature(verb).parameters.values()
        declared = declaration(verb).signature.parameters.values()
        assert [(each.name, each.default) for each in declared][1:] == [(each.name, each.default) for each in imported][
            1:
        ]
    code = "import sys, headway as hw; import headway.app.remote, headway.app.verbs; hw.connect; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
