"""Tuning published encoder-decoders: inputs, labels, loss and summaries are those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from twins import perturb

import headway as hw
from headway.app.conversion import export_model
from headway.app.recipes import configure_recipe
from headway.domains.translation.task import ParallelText, source_ids
from headway.formats.open import open_model
from headway.learn.fine_tuning import open_new_task

T = pytest.importorskip("transformers")
PEOPLE, PLACES = ("a man", "a woman", "the boy", "two girls"), ("in the park", "at home", "by the sea", "on a hill")
TEXTS = [
    (f"{who} {what} {where} all day", f"{who} {where}")
    for who in PEOPLE
    for what in ("sings", "runs", "sits")
    for where in PLACES
]
SMALL: dict[str, Any] = {"vocab_size": 384, "d_model": 16}
SIDES = {
    f"{side}_{name}": size
    for side in ("encoder", "decoder")
    for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
}


def published(name: str, folder: Path) -> tuple[Any, Any]:
    """A random model and its tokenizer, saved to a folder."""
    torch.manual_seed(0)
    if name == "bart":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=letters, show_progress=False
        )
        trained.train_from_iterator([text for text, _ in TEXTS], trainer)
        trained.model.save(str(folder))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BartTokenizer"}))
        tokenizer = T.BartTokenizer.from_pretrained(folder)
        config = T.BartConfig(**SMALL, **SIDES, max_position_embeddings=64, forced_bos_token_id=0)
        model = T.BartForConditionalGeneration(config)
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
        tokenizer = T.ByT5Tokenizer()
        config = T.T5Config(**SMALL, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)
        model = T.T5ForConditionalGeneration(config)
    perturb(model.eval(), 0.3, 1)
    model.save_pretrained(folder)
    return model, tokenizer


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_published_model_is_tuned_as_it_was_trained(name: str, tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    theirs, tokenizer = published(name, tmp_path / "start")
    data, prefix = tmp_path / "data.jsonl", "summarize: " if name == "t5" else ""
    data.write_text("".join(json.dumps({"text": text, "summary": summary}) + "\n" for text, summary in TEXTS))
    settings = {"task.prefix": prefix, "task.smoothing": 0.0, "train.precision": "fp32", "task.split.test": 0.2}
    settings |= {"train.steps": 2, "train.batch_tokens": 256, "task.split.validation": 0.2}
    recipe = configure_recipe("summarization", data, settings, None, start=tmp_path / "start")
    task = open_new_task(recipe, tmp_path / "run")
    batch, examples = next(iter(task.batches("train"))), task.examples
    assert isinstance(examples, ParallelText)
    sources, layout, targets, _ = batch.inputs
    known = {tuple(tokenizer(prefix + text)["input_ids"]): summary for text, summary in TEXTS}
    rows = [known[tuple(ids[mask].tolist())] for ids, mask in zip(sources, layout.mask)]  # a KeyError if they differ
    labels = [tokenizer(text_target=summary)["input_ids"] for summary in rows]
    for row, wanted in enumerate(labels):
        length = len(wanted)
        shifted = theirs.prepare_decoder_input_ids_from_labels(labels=torch.tensor([wanted]))[0].tolist()
        assert targets[row, :length].tolist() == shifted
        kept = [
            -100 if name == "bart" and i == 0 else label for i, label in enumerate(wanted)
        ]  # BART's begins with <s>
        assert batch.targets[row].tolist() == kept + [-100] * (batch.targets.shape[1] - length)
    ours = open_model(tmp_path / "start").model
    with torch.no_grad():
        loss = task.objective.loss(ours, batch)["loss"]
        wanted = theirs(
            input_ids=sources,
            attention_mask=layout.mask.long(),
            decoder_input_ids=targets,
            labels=batch.targets,
        ).loss
    assert float(loss.total) / loss.count == pytest.approx(float(wanted), rel=1e-5)
    start = {"start": tmp_path / "start", "progress": False, "samples": 1}
    run = hw.train("summarization", data, settings, run=tmp_path / "run", **start)
    assert run.summary["scores"].keys() >= {"rouge1", "rouge2", "rougeL", "rougeL_interval"}
    export_model(open_model(tmp_path / "run"), tmp_path / "out")
    tuned = type(theirs).from_pretrained(tmp_path / "out").eval()
    tuned.generation_config.forced_eos_token_id = None
    texts, outputs = [text for text, _ in TEXTS[:3]], []
    for text in texts:
        ids = tokenizer(prefix + text, return_tensors="pt")["input_ids"]
        options = {"max_new_tokens": 10 + ids.shape[1], "num_beams": 1, "do_sample": False, "max_length": None}
        outputs.append(tuned.generate(ids, **options)[0, 1:].tolist())
    model = hw.load(tmp_path / "run", "cpu")
    assert model.translate(texts, beam=1) == [model.codec.decode(ids) for ids in outputs]


def test_long_texts_are_cut_in_training_and_in_use(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    _, tokenizer = published("bart", tmp_path / "start")
    data = tmp_path / "data.csv"
    data.write_text("text,summary\n" + "".join(f"{' '.join([text] * 9)},{summary}\n" for text, summary in TEXTS))
    recipe = configure_recipe("summarization", data, {"train.batch_tokens": 128}, None, start=tmp_path / "start")
    task = open_new_task(recipe, tmp_path / "run")
    examples = task.examples
    assert isinstance(examples, ParallelText)
    batch = next(iter(task.batches("train")))
    assert batch.inputs[0].shape[1] == 64  # the model's context
    assert (batch.inputs[0][:, -1] == tokenizer.eos_token_id).all()
    text = examples.sources("train", 1).inputs[0]
    [ids] = source_ids([text], examples.codecs.source, examples.config, examples.special_tokens, 64)
    assert ids == tokenizer(text, truncation=True, max_length=64)["input_ids"]
