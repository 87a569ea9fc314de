"""Masked language modelling on real text: which places are hidden, rows and pairs, loss, bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from headway.codecs import Codec, train_codec
from headway.codecs.mask_tokens import SPECIAL, TokenTables, token_tables
from headway.config import override
from headway.data import IGNORE_INDEX, SplitConfig
from headway.domains.masked.recipes import masked, modern_encoder
from headway.domains.masked.task import MaskedDataset, Masking, MaskingConfig
from headway.errors import ConfigError, UserError
from headway.layout import Layout
from headway.learn import Recipe, Shard, TrainConfig
from headway.learn.examples import Batch
from headway.learn.learner import Learner
from headway.learn.parallel.processes import Processes
from headway.learn.task import Task
from headway.nn.models import build
from headway.nn.models.presets import preset


@pytest.fixture(scope="module")
def play(data_dir: Path) -> str:
    """The first 60,000 characters of Shakespeare's plays."""
    return (data_dir / "lm/tinyshakespeare.txt").read_text()[:60_000]


@pytest.fixture
def speeches(play: str, tmp_path: Path) -> Path:
    """What each says in turn, as documents."""
    path = tmp_path / "speeches.jsonl"
    path.write_text("".join(json.dumps({"text": speech}) + "\n" for speech in play.split("\n\n")))
    return path


@pytest.fixture(scope="module")
def codec(play: str) -> Codec:
    return train_codec("wordpiece", [play], 500, special=SPECIAL)


@pytest.fixture(scope="module")
def symbols(codec: Codec) -> TokenTables:
    return token_tables(codec)


def small(**settings: object) -> Recipe:
    model = modern_encoder(width=32, depth=2, heads=2, vocab_size=1, context=64)
    recipe = replace(masked(), model=model, train=TrainConfig(batch_tokens=512, precision="fp32"))
    return override(recipe, {"task.size": 500, "task.split": {"validation": 0.2, "test": 0.1}, **settings})


def open_task(recipe: Recipe, path: Path) -> Task:
    task = recipe.task.open(recipe, [path], path.parent / "run")
    assert isinstance(task, Task)
    return task


def texts_of(task: Task) -> MaskedDataset:
    assert isinstance(task.examples, MaskedDataset)
    return task.examples


def as_rows(batch: Batch) -> list:
    (inputs, layout), (labels, _) = batch.inputs, batch.targets
    types = [] if inputs.types is None else inputs.types.tolist()
    return inputs.ids.tolist() + labels.tolist() + layout.positions.tolist() + types


def text_rows(codec: Codec, play: str, length: int = 100) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(codec.encode(play))
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    return rows, np.broadcast_to(np.arange(length), rows.shape)


# Which places are hidden.


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_shares_are_those_of_the_paper(codec: Codec, symbols: TokenTables, play: str, rate: float) -> None:
    ids, positions = text_rows(codec, play)
    inputs, labels = Masking(MaskingConfig(rate), symbols)(ids, positions, np.arange(len(ids)), seed=1)
    hidden = labels != IGNORE_INDEX
    assert (hidden.sum(1) == round(rate * ids.shape[1])).all()
    assert (labels[hidden] == ids[hidden]).all()
    assert (inputs[~hidden] == ids[~hidden]).all()
    count = hidden.sum()
    by_mask, same = (inputs[hidden] == symbols.mask).sum() / count, (inputs[hidden] == ids[hidden]).sum() / count
    assert by_mask == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / count))
    # A random symbol is the same one by chance once in some 500.
    assert same == pytest.approx(0.1 + 0.1 / symbols.text.sum(), abs=4 * math.sqrt(0.09 / count))
    assert symbols.text[inputs[hidden & (inputs != symbols.mask)]].all()  # no special symbol comes by chance


def test_special_symbols_and_padding_are_never_hidden(codec: Codec, symbols: TokenTables, play: str) -> None:
    ids, positions = (rows.copy() for rows in text_rows(codec, play))
    ids[:, 0], ids[:, 49], ids[:, 90:], positions[:, 90:] = codec.bos_id, codec.eos_id, 0, -1
    _, labels = Masking(MaskingConfig(0.9), symbols)(ids, positions, np.arange(len(ids)), seed=1)
    assert (labels[:, [0, 49, *range(90, 100)]] == IGNORE_INDEX).all()
    assert ((labels != IGNORE_INDEX).sum(1) == round(0.9 * 88)).all()


def test_masks_are_a_pure_function_of_seed_and_sample(codec: Codec, symbols: TokenTables, play: str) -> None:
    ids, positions = text_rows(codec, play)
    masking, numbers = Masking(MaskingConfig(unit="spans"), symbols), np.arange(len(ids))
    both = np.stack(masking(ids, positions, numbers, seed=1))
    some = [5, 3, 17]
    assert (np.stack(masking(ids[some], positions[some], numbers[some], seed=1)) == both[:, some]).all()
    assert (np.stack(masking(ids, positions, numbers, seed=2)) != both).any(axis=(0, 2)).all()
    assert (np.stack(masking(ids, positions, numbers + len(ids), seed=1)) != both).any(axis=(0, 2)).all()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_whole_words_are_never_split(play: str, kind: str) -> None:
    codec = train_codec(kind, [play], 500, special=SPECIAL)  # type: ignore[arg-type]
    symbols = token_tables(codec)
    ids, positions = text_rows(codec, play)
    _, labels = Masking(MaskingConfig(unit="words"), symbols)(ids, positions, np.arange(len(ids)), seed=1)
    hidden = labels != IGNORE_INDEX
    inside = ~symbols.word_starts(ids)[:, 1:]
    assert inside.mean() > 0.2  # there are words of several symbols
    assert (hidden[:, 1:] == hidden[:, :-1])[inside].all()
    assert hidden.mean() == pytest.approx(0.15, abs=0.005)


def test_words_start_where_the_tokenizer_splits(codec: Codec, symbols: TokenTables, play: str) -> None:
    """The pre-tokenizer itself says where words start, in text of many lines and marks."""
    encoding = codec.tokenizer.encode(play[:20_000])  # type: ignore[attr-defined]
    words = np.array(encoding.word_ids)
    ids = np.array(encoding.ids)[None]
    found, wanted = symbols.word_starts(ids)[0, 1:], words[1:] != words[:-1]
    assert (found == wanted).mean() > 0.98  # 's and runs of line breaks are taken apart
    known = [codec.decode([i]) for i in ids[0]]
    assert not any(
        one[-1:].isalpha() and two[:1].isalpha() for one, two, start in zip(known, known[1:], found) if start
    )


def test_a_published_wordpiece_marks_what_goes_on_a_word() -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from headway.codecs import TokenizerCodec

    words = ["[UNK]", "play", "##ing", "##s", ",", "the", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("[UNK]", *words[6:])])
    codec = TokenizerCodec(tokenizer)
    ids = np.array([codec.encode("playing, the plays nothing")])
    assert ids.tolist() == [[1, 2, 4, 5, 1, 3, 0]]
    assert token_tables(codec).word_starts(ids)[0, :6].tolist() == [True, False, True, True, True, False]
    assert not token_tables(codec).text[[0, 6, 7, 8]].any()


def test_spans_are_geometric_and_replaced_as_one(codec: Codec, symbols: TokenTables, play: str) -> None:
    ids, positions = text_rows(codec, play, 400)
    masking = Masking(MaskingConfig(unit="spans"), symbols)
    inputs, labels = masking(ids, positions, np.arange(len(ids)), seed=1)
    assert (labels != IGNORE_INDEX).mean() == pytest.approx(0.15, abs=0.005)
    units = masking._units(ids, positions, np.arange(len(ids)), 1)
    starts, lengths = symbols.word_starts(ids), []
    for row in range(len(ids)):
        for unit in range(units[row].max()):  # the last is cut by the row's end
            places = units[row] == unit
            lengths.append(int(starts[row, places].sum()))
            hidden, masks = labels[row, places] != IGNORE_INDEX, inputs[row, places] == symbols.mask
            assert hidden.all() or not hidden.any()
            assert masks.all() or not masks.any()
    assert max(lengths) <= 10
    weights = 0.8 ** np.arange(10)
    wanted = weights / weights.sum()
    assert np.mean(lengths) == pytest.approx((wanted * np.arange(1, 11)).sum(), abs=0.15)  # 3.8, as the paper says
    assert np.mean(np.array(lengths) == 1) == pytest.approx(wanted[0], abs=0.04)


def test_a_row_of_one_long_word_is_still_learned_from(codec: Codec, symbols: TokenTables) -> None:
    ids = np.array([codec.encode("honorificabilitudinitatibus")])
    positions = np.arange(ids.shape[1])[None]
    _, labels = Masking(MaskingConfig(unit="words"), symbols)(ids, positions, np.arange(1), seed=1)
    assert (labels != IGNORE_INDEX).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rate": 0.0}, "masking.rate is 0.0"), ({"mask": 0.9, "random": 0.2}, "are not valid; choose shares")],
)
def test_shares_that_are_none_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskingConfig(**settings)


# Rows and pairs.


def test_rows_hold_every_document_once_and_framed(speeches: Path, play: str) -> None:
    task = open_task(small(**{"task.masking.mask": 0.0, "task.masking.random": 0.0}), speeches)
    codec, found = texts_of(task).codec, []
    for batch in task.batches("all"):
        inputs, layout = batch.inputs
        for ids, positions in zip(inputs.ids, layout.positions):
            starts = (positions == 0).nonzero()[:, 0].tolist()
            length = int((positions >= 0).sum())
            for first, last in zip(starts, [*starts[1:], length]):
                assert (ids[first], ids[last - 1]) == (codec.bos_id, codec.eos_id)
                assert positions[first:last].tolist() == list(range(last - first))
                found.append(ids[first + 1 : last - 1].tolist())
    whole = [codec.encode(speech) for speech in play.split("\n\n")]
    pieces = [ids[i : i + 62] for ids in whole for i in range(0, len(ids), 62)]
    assert sorted(found) == sorted(pieces)
    source = texts_of(task).of("all").source
    assert source.padding < 0.05  # type: ignore[attr-defined]


def test_a_packed_row_is_read_as_its_documents_are_alone(speeches: Path) -> None:
    recipe = small()
    task = open_task(recipe, speeches)
    model = build(task.adapt(recipe.model)).eval()
    every = (batch.inputs for batch in task.batches("train"))
    inputs, layout = next(found for found in every if (found[1].positions == 0).sum() > len(found[1].positions))
    row = int((layout.positions == 0).sum(1).argmax())
    ids, positions = inputs.ids[row], layout.positions[row]
    with torch.no_grad():
        together = model(inputs, layout).x[row]
        starts = [*(positions == 0).nonzero()[:, 0].tolist(), int((positions >= 0).sum())]
        for first, last in pairwise(starts):
            alone = model(ids[None, first:last], Layout.full(1, last - first)).x[0]
            torch.testing.assert_close(together[first:last], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pairs", [False, True])
def test_batches_are_a_pure_function_of_seed_and_index(speeches: Path, pairs: bool) -> None:
    task = open_task(small(**{"task.next": pairs}), speeches)
    first = [as_rows(batch) for batch in islice(task.batches("train"), 90)]
    assert [as_rows(batch) for batch in islice(task.batches("train", start=60), 30)] == first[60:]
    sharded = [islice(task.batches("train", Shard(rank, 2)), 45) for rank in range(2)]
    assert [as_rows(batch) for two in zip(*sharded) for batch in two] == first
    held = [[as_rows(batch) for batch in task.batches("validation")] for _ in range(2)]
    assert held[0] == held[1]
    texts_of(task).seed += 1
    assert as_rows(next(task.batches("train"))) != first[0]
    assert [as_rows(batch) for batch in task.batches("validation")] == held[0]  # masks of the row alone


def test_every_epoch_has_new_masks(speeches: Path) -> None:
    task = open_task(small(**{"task.masking.mask": 0.0, "task.masking.random": 0.0}), speeches)
    size = len(texts_of(task).of("train"))
    seen: dict[str, list] = {}
    for batch in islice(task.batches("train"), -(-2 * size // 8)):
        for ids, labels in zip(batch.inputs[0].ids.tolist(), batch.targets[0].tolist()):
            seen.setdefault(str(ids), []).append(labels)
    twice = [labels for labels in seen.values() if len(labels) > 1]
    assert len(twice) > 0.9 * size
    assert all(labels[0] != labels[1] for labels in twice)


def test_half_of_the_pairs_follow_and_the_others_are_of_other_documents(speeches: Path, play: str) -> None:
    task = open_task(small(**{"task.next": True, "task.masking.mask": 0.0, "task.masking.random": 0.0}), speeches)
    codec = texts_of(task).codec
    documents = [codec.encode(speech) for speech in play.split("\n\n")]
    texts = [" ".join(map(str, ids)) for ids in documents]
    apart = []
    for batch in islice(task.batches("train"), 40):
        (inputs, layout), (labels, unrelated) = batch.inputs, batch.targets
        apart += unrelated.tolist()
        for row in range(len(labels)):
            length = int(layout.lengths[row])
            ids, types = inputs.ids[row, :length].tolist(), inputs.types[row, :length].tolist()
            cut = types.index(1)
            assert types == [0] * cut + [1] * (length - cut)
            assert (ids[0], ids[cut - 1], ids[-1]) == (codec.bos_id, codec.eos_id, codec.eos_id)
            first, second = (" ".join(map(str, part)) for part in (ids[1 : cut - 1], ids[cut:-1]))
            if unrelated[row] == 0:
                assert any(f"{first} {second}" in text for text in texts)
    assert np.mean(apart) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(len(apart)))


def test_wrong_pairs_come_from_elsewhere(speeches: Path, play: str, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text(play)
    for path in (one, speeches):
        source = texts_of(open_task(small(**{"task.next": True}), path)).of("train").source
        numbers = np.arange(2000)
        first = source._pairs[numbers % len(source)]  # type: ignore[attr-defined]
        others = source._unrelated(first, np.linspace(0, 1, 2000, endpoint=False))  # type: ignore[attr-defined]
        assert ((others >= 0) & (others < len(source._starts))).all()  # type: ignore[attr-defined]
        if path == one:
            assert ((others != first) & (others != first + 1)).all()
        else:
            assert (source._document[others] != source._document[first]).all()  # type: ignore[attr-defined]


# The task.


def test_an_untrained_model_knows_nothing(speeches: Path) -> None:
    recipe = small(**{"task.next": True})
    task = open_task(recipe, speeches)
    scores = task.evaluate(build(task.adapt(recipe.model)).eval())
    assert scores["loss"] == pytest.approx(math.log(500), abs=0.1)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert scores["next_loss"] == pytest.approx(math.log(2), abs=0.3)  # weights as drawn have opinions on two classes
    assert 0.3 < scores["next_accuracy"] < 0.7
    assert scores["accuracy"] < 0.05


@pytest.mark.parametrize("pairs", [False, True])
def test_overfits_one_batch(speeches: Path, pairs: bool) -> None:
    recipe = small(**{"task.next": pairs})
    task = open_task(recipe, speeches)
    model = build(task.adapt(recipe.model))
    batch = next(task.batches("train"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        losses = task.loss(model, batch)
        sum(loss.total / loss.count for loss in losses.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert list(losses) == (["masked", "next"] if pairs else ["masked"])
    assert all(loss.total.item() / loss.count < 0.1 for loss in losses.values())


def test_counts_are_exact_under_accumulation(speeches: Path) -> None:
    """Micro-batches of two rows give the step of one batch of eight, though each has other counts."""
    updated = []
    for size, parts in ((8, 1), (2, 4)):
        recipe = small(**{"task.next": True, "train.batch_size": size, "train.accumulate": parts})
        task = open_task(recipe, speeches)
        recipe = replace(recipe, model=task.adapt(recipe.model))
        learner = Learner(build(recipe.model), recipe, task, Processes(torch.device("cpu")))
        batches = list(islice(task.batches("train"), parts))
        for batch in batches:
            counts = {name: loss.count for name, loss in task.loss(learner.model, batch).items()}
            assert counts == task.objective.counts(batch)
        losses = learner.update(0, batches).losses()
        updated.append((losses, learner.flat.data.clone()))
    assert updated[0][0] == {name: pytest.approx(sums, rel=1e-5) for name, sums in updated[1][0].items()}
    torch.testing.assert_close(updated[0][1], updated[1][1], atol=1e-5, rtol=1e-4)


def test_samples_show_what_was_hidden_and_what_was_filled_in(speeches: Path) -> None:
    recipe = small()
    task = open_task(recipe, speeches)
    samples = task.samples(build(task.adapt(recipe.model)).eval(), 3)
    assert len(samples) == 3
    for sample in samples:
        assert "[MASK]" in sample["masked"]
        assert "[MASK]" not in sample["text"]
        assert "[CLS]" not in sample["text"]


def test_the_codec_of_a_run_is_kept_and_has_a_mask(speeches: Path, tmp_path: Path) -> None:
    task = open_task(small(), speeches)
    task.save(tmp_path / "run")
    again = open_task(small(), speeches)
    codec = texts_of(task).codec
    assert texts_of(again).codec.encode("First Citizen") == codec.encode("First Citizen")
    assert [codec.decode([i]) for i in (codec.bos_id, codec.eos_id)] == ["", ""]  # type: ignore[list-item]


def test_what_does_not_fit_is_an_error_before_any_work(speeches: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.context=128 exceeds model.context=64"):
        open_task(small(**{"task.context": 128}), speeches)
    task = open_task(small(), speeches)
    with pytest.raises(UserError, match="this model is causal"):
        task.adapt(preset("gpt2"))
    with pytest.raises(UserError, match="EncoderDecoderConfig cannot predict masked tokens"):
        task.adapt(preset("transformer-base"))
    with pytest.raises(UserError, match="is too short for text"):
        open_task(small(**{"task.context": 2}), speeches).adapt(small().model)
    with pytest.raises(UserError, match="validation split"):
        open_task(small(**{"task.split": SplitConfig(0.0, 0.0)}), speeches).adapt(small().model)
    train_codec("bpe", [speeches.read_text()], 500).save(tmp_path / "run")
    with pytest.raises(UserError, match="no mask token"):
        open_task(small(), speeches)
