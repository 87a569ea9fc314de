"""Conversations and preferences in shards: splits, batches, scores and weights of the files, started from the index."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_data import chats, choices, opened, say, small, train, write
from prepared_data import PLAIN, check_equal_batches, check_equal_runs, contents, draw, stopped
from tiny_runs import cut_back

from headway.app.cli.main import main
from headway.data.prepared import preparation, prepared_samples
from headway.data.prepared.preparation import Preparation, PrepareConfig
from headway.data.prepared.prepared_samples import PreparedSamples
from headway.data.prepared.shard_reader import MappedShards
from headway.domains.chat.chat_samples import CONVERSATIONS, PREFERENCES, ChatKind
from headway.domains.chat.chat_shards import ChatReader
from headway.domains.chat.recipes import SCALES, instruct, preference
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.learn import Shard, token_shards
from headway.learn.prepared_rows import PreparedTokens
from headway.learn.shard_batches import PlacedBatches, PlacedLengthBatches
from headway.learn.token_shards import RowKind


@pytest.fixture(autouse=True)
def _no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of runs have tests of their own, and take as long as these runs."""
    monkeypatch.setattr("headway.app.api.available", lambda: False)


@pytest.fixture
def files(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """90 conversations, ten of them in a file for tests, and 80 preferences next to their folder, in blocks of 4 KB and
    shards of 1 KB.
    """
    monkeypatch.setattr(token_shards, "_MIN_BLOCK", 4096)
    monkeypatch.setattr(token_shards, "_ROWS_AT_ONCE", 7)
    for name in ("_MAX_SHARD_BYTES", "_MIN_SHARD_BYTES"):
        monkeypatch.setattr(preparation, name, 1024)
    monkeypatch.setenv("HEADWAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    rows = chats(data_dir, 90)
    write(tmp_path / "data" / "train.jsonl", rows[:80])
    write(tmp_path / "data" / "test.jsonl", rows[80:])
    write(tmp_path / "choices.jsonl", choices(data_dir))
    return tmp_path / "data"


def prepare(
    path: Path,
    out: Path,
    config: PrepareConfig = PLAIN,
    tokenizer: Path | None = None,
    kind: ChatKind = CONVERSATIONS,
) -> Path:
    name = None if tokenizer is None else str(tokenizer)
    reader = ChatReader(kind, [path], "bpe", 300, name)
    Preparation(RowKind(reader, name, config.seed, config.validation is not None), config, out, lambda _: None).run()
    return out


def test_conversations_have_the_splits_and_batches_of_the_files(files: Path, tmp_path: Path) -> None:
    out, recipe = prepare(files, tmp_path / "out"), small(instruct())
    index = json.loads((out / "index.json").read_text())
    assert (len(index["splits"]["train"]) > 2, index["counts"]["samples"]) == (True, 90)
    assert index["details"]["sample"]["rows"] == 80
    assert "{%- generation %}" in index["details"]["template"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copyfile(out / name, tmp_path / "run" / name)
    local, prepared = opened(recipe, files, tmp_path / "run"), opened(recipe, out)
    for split, rows in local.examples.splits.indices.items():
        assert (prepared.examples.splits.indices[split] == rows).all()
    check_equal_batches(local, prepared, recipe)
    assert prepared.examples.batches_per_epoch() == local.examples.batches_per_epoch()
    assert prepared.examples.preview(9) == local.examples.preview(9)
    rows = local.examples.spread_rows(5).tolist()
    assert [prepared.examples.reply(row) for row in rows] == [local.examples.reply(row) for row in rows]
    unique_targets = SCALES["instruct"].unique_targets
    assert unique_targets is not None
    assert unique_targets(prepared) == unique_targets(local) > 100


def test_a_training_from_the_index_has_the_weights_of_the_files(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out, recipe = tmp_path / "out", small(instruct())
    local = train(tmp_path / "local", files, recipe, samples=2)
    command = ["data", "prepare", str(files), "--kind", "conversations", "--tokenizer", str(local.directory)]
    assert main([*command, "--out", str(out)]) == 0
    assert f"use it: headway train instruct --data {out}" in capsys.readouterr().out
    shutil.rmtree(files)
    reads, read = [], MappedShards.read
    monkeypatch.setattr(MappedShards, "read", lambda self, *span: (reads.append(span), read(self, *span))[1])
    task = opened(recipe, out)
    task.adapt(recipe.model)
    assert not reads  # a start reads no sample
    next(task.batches("train"))
    assert 0 < len(reads) < 40
    prepared = train(tmp_path / "prepared", out, recipe, samples=2)
    check_equal_runs(local.directory, prepared.directory)
    assert prepared.summary["samples"] == local.summary["samples"]
    copy = cut_back(prepared.directory, tmp_path / "copy", 3)
    train(copy, out, recipe, resume=True)
    assert (copy / "model.safetensors").read_bytes() == (local.directory / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["evaluate", str(local.directory), "--data", str(out), "--split", "test", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["perplexity"] == local.summary["scores"]["perplexity"]


def test_stopped_and_divided_preparations_have_the_same_bytes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(prepare(files, tmp_path / "one"))
    for owner, name, count in ((ChatReader, "encode", 3), (RowKind, "write_part", 2), (RowKind, "write_shard", 2)):
        with stopped(monkeypatch, owner, name, count):
            prepare(files, tmp_path / "stopped")
        assert not (tmp_path / "stopped" / "index.json").exists()
    assert contents(prepare(files, tmp_path / "stopped")) == expected
    command = ["data", "prepare", str(files), "--kind", "conversations", "--size", "300", "--out"]
    for part in ("1/2", "2/2"):
        assert main([*command, str(tmp_path / "parts"), "--part", part]) == 0
    assert main([*command, str(tmp_path / "joined"), "--join", str(tmp_path / "parts")]) == 0
    assert contents(tmp_path / "joined") == expected


def test_processes_share_the_work(tmp_path: Path) -> None:
    """Two processes import the package, which takes most of the time."""
    rows = [{"messages": say(draw(seed, 200), f"{seed} ships")} for seed in range(300)]  # two blocks
    path = write(tmp_path / "chats.jsonl", rows)
    command = ["data", "prepare", str(path), "--kind", "conversations", "--codec", "byte", "--out"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "two"), "--processes", "2"]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_large_data_are_shuffled_in_windows(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    out = prepare(files, tmp_path / "out")
    examples = opened(small(instruct(), **{"train.accumulate": 2, "train.batch_tokens": 160}), out).examples
    rows = examples.of("train")
    order = rows.training_order()
    assert isinstance(order, PlacedBatches)
    assert (order.size, order.places) == (1, 2)
    epoch = [indices for (_, indices), _ in zip(order.endless(Shard(), 0), range(len(rows.packed)))]
    assert len(set(np.concatenate(epoch).tolist())) > 0.8 * len(rows.packed)
    assert next(order.endless(Shard(), 8))[1].tolist() == epoch[8].tolist()
    # A row is packed from one shard, and all conversations are in some row.
    reads, read = [], MappedShards.read
    monkeypatch.setattr(MappedShards, "read", lambda self, *span: (reads.append(span), read(self, *span))[1])
    labels = 0
    for row in range(len(rows.packed)):
        reads.clear()
        labels += rows.take(np.array([row])).tokens
        assert len({shard for shard, *_ in reads}) == 1
    assert labels == examples.cache.reply_lengths[examples.rows_of("train")].sum()


def test_splits_and_duplicates_may_be_decided_when_conversations_are_prepared(
    files: Path, data_dir: Path, tmp_path: Path
) -> None:
    write(files / "more.jsonl", [*chats(data_dir, 81)[79:], *chats(data_dir, 85)[84:]])  # two of them are in test.jsonl
    out = prepare(files, tmp_path / "out", PrepareConfig(unique=True, validation=0.3))
    index = json.loads((out / "index.json").read_text())
    assert (index["counts"]["samples"], index["counts"]["removed"]) == (90, 3)
    examples = opened(small(instruct()), out).examples
    assert len(examples.splits.rows("test")) == 10
    assert 10 < len(examples.splits.rows("validation")) == (examples.cache.named_splits == 2).sum()


def test_minutes_choose_rows_for_the_longest_conversation(files: Path, tmp_path: Path) -> None:
    out, recipe = prepare(files, tmp_path / "out"), instruct()
    choose = SCALES["instruct"].data_settings
    assert choose is not None
    settings, reason = choose(recipe, [out], 1.0)
    longest = opened(small(recipe), out).examples.cache.lengths.max() - 1
    assert settings["task.context"] == settings["model.context"] == next(n for n in (128, 256, 512) if longest <= n)
    assert settings["task.size"] == 300
    assert "rows of" in reason


TEMPLATE = """\
{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content + eos_token }}{% endgeneration %}
{% endfor %}"""


def test_the_template_is_that_of_the_model(files: Path, tmp_path: Path) -> None:
    out, model, recipe = prepare(files, tmp_path / "out"), tmp_path / "model", small(instruct())
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(out / name, model / name)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    own = prepare(files, tmp_path / "own", tokenizer=model)
    assert json.loads((own / "index.json").read_text())["details"]["template"] == TEMPLATE
    new = opened(recipe, own)  # a new model has the template of the data
    assert new.examples.template.text == TEMPLATE
    assert new.examples.cache.chat(0)[1].mean() > 0.5  # which trains on all messages
    with pytest.raises(UserError, match="own was prepared with another chat template than that of this model; prepare"):
        opened(recipe, own, model)
    Usage(template=TEMPLATE).save(model)
    opened(recipe, own, model)
    with pytest.raises(UserError, match="out was prepared with another chat template"):
        opened(recipe, out, model)
    other = (model / "tokenizer.json").read_text().replace("<|user|>", "<|human|>")
    (model / "tokenizer.json").write_text(other)
    with pytest.raises(UserError, match="own was prepared with another tokenizer than that of this model; prepare the"):
        opened(recipe, own, model)


def test_bad_rows_and_damage_are_reported(
    files: Path, data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, recipe = prepare(files, tmp_path / "out"), small(instruct())
    with pytest.raises(UserError, match=r"longer than the limit of 21 tokens: train.jsonl, line \d+ has \d+; raise"):
        opened(small(instruct(), **{"task.context": 20}), out).adapt(recipe.model)
    with pytest.raises(UserError, match="contains prepared conversations, which cannot be mixed"):
        recipe.task.open(recipe, [out, files], tmp_path)
    assert main(["train", "preference", "--data", str(out), "--run", str(tmp_path / "run")]) == 2
    assert "contains prepared conversations, but this recipe reads prepared" in capsys.readouterr().err
    rows, model = chats(data_dir, 4), tmp_path / "model"
    for bad, message in (
        ({"messages": [{"role": "user", "content": "a"}]}, "line 5 has no assistant message to learn from"),
        ({"text": "a"}, "line 5 has no key 'messages'"),
    ):
        path = write(tmp_path / "bad.jsonl", [*rows, bad])
        with pytest.raises(UserError, match=message):
            prepare(path, tmp_path / "bad")
    write(path, rows)
    prepare(path, tmp_path / "bad")  # the corrected command may have the same output
    shutil.copytree(out, model)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(UserError, match=r"t\w+.jsonl, line \d+: the model's chat template does not mark any of it"):
        prepare(files, tmp_path / "unmarked", tokenizer=model)
    (model / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match="chat template"):
        prepare(files, tmp_path / "invalid", tokenizer=model)
    assert not (tmp_path / "invalid").exists()
    index = json.loads((out / "index.json").read_text())
    index["details"]["template"] = 3
    (model / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not state a chat template; prepare the data again"):
        opened(recipe, model)
    examples = opened(recipe, out).examples
    read = PreparedTokens.contents
    for change in (lambda mask: mask[:-1], lambda mask: memoryview(bytes(len(mask)))):
        cut = lambda self, rows, change=change: ((ids, change(mask)) for ids, mask in read(self, rows))  # noqa: E731
        monkeypatch.setattr(PreparedTokens, "contents", cut)
        with pytest.raises(UserError, match="is inconsistent with its shards; prepare the data again"):
            examples.reply(3)
    samples = examples.cache.prepared.samples
    for sums in (samples.sums + np.uint64(10**6), samples.sums[:, :0]):
        monkeypatch.setattr(PreparedSamples, "open", lambda *_, sums=sums: replace(samples, sums=sums))
        with pytest.raises(UserError, match="is inconsistent with its shards; prepare the data again"):
            opened(recipe, out)


@pytest.mark.parametrize("loss", ["dpo", "orpo"])
def test_preferences_have_the_splits_batches_and_references_of_the_file(
    loss: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, start = tmp_path / "choices.jsonl", train(tmp_path / "start", files, small(instruct())).directory
    recipe = replace(small(preference(), **{"task.loss": loss}), start=str(start))
    out = prepare(path, tmp_path / "out", tokenizer=start, kind=PREFERENCES)
    local, prepared = opened(recipe, path, start), opened(recipe, out, start)
    for split, rows in local.examples.splits.indices.items():
        assert (prepared.examples.splits.indices[split] == rows).all()
    for task in (local, prepared):
        task.adapt(recipe.model)
    for split in ("train", "validation"):
        for expected, batch, _ in zip(local.batches(split), prepared.batches(split), range(4)):
            assert torch.equal(expected.inputs[0], batch.inputs[0])
            for target, other in zip(expected.targets, batch.targets):
                assert torch.equal(target, other)
            assert bool(batch.targets[1].any()) == (loss == "dpo")
    monkeypatch.setattr(prepared_samples, "_MAX_SHUFFLED", 0)
    examples = opened(recipe, out, start).examples
    rows, order = examples.rows_of("train"), examples.of("train").training_order()
    assert isinstance(order, PlacedLengthBatches)
    batches = [indices for (_, indices), _ in zip(order.endless(Shard(), 0), range(round(order.epoch)))]
    assert len(set(np.concatenate(batches).tolist())) > 0.8 * len(rows)
    for indices in batches:
        assert len(set(examples.windowed.shards_of(rows[indices]).tolist())) == 1


def test_a_training_on_preferences_from_the_index_has_the_weights_of_the_file(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("headway.domains.chat.task._MAX_REPLY_TOKENS", 30)
    path, out, start = tmp_path / "choices.jsonl", tmp_path / "out", tmp_path / "start"
    train(start, files, small(instruct()))
    command = ["data", "prepare", str(path), "--kind", "preferences", "--out", str(out)]
    assert main(command) == 2
    assert "preferences are for a model that can already answer; name it with --tokenizer" in capsys.readouterr().err
    assert main([*command, "--tokenizer", str(start)]) == 0
    assert f"use it: headway train preference --data {out} --from {start}\n" in capsys.readouterr().out
    local = train(tmp_path / "local", path, small(preference()), start=start)
    path.unlink()
    prepared = train(tmp_path / "prepared", out, small(preference()), start=start)
    check_equal_runs(local.directory, prepared.directory)
    with pytest.raises(UserError, match="contains prepared preferences, but this recipe reads prepared conversations"):
        instruct().files([out])


def test_stopped_preparations_of_preferences_have_the_same_bytes(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = tmp_path / "choices.jsonl", prepare(files, tmp_path / "model")
    one = prepare(path, tmp_path / "one", tokenizer=expected, kind=PREFERENCES)
    write_part, calls = RowKind.write_part, iter(range(2))

    def stop(self: RowKind, *arguments: Any) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        write_part(self, *arguments)

    monkeypatch.setattr(RowKind, "write_part", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, tmp_path / "two", tokenizer=expected, kind=PREFERENCES)
    monkeypatch.setattr(RowKind, "write_part", write_part)
    assert contents(prepare(path, tmp_path / "two", tokenizer=expected, kind=PREFERENCES)) == contents(one)
    damaged = write(tmp_path / "bad.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    with pytest.raises(UserError, match="line 1: chosen and rejected are the same; remove the line"):
        prepare(damaged, tmp_path / "bad", tokenizer=expected, kind=PREFERENCES)
