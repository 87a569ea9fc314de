"""Masked language models beside transformers: what fills a mask, and the losses of BERT's pre-training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tokenizers.normalizers import BertNormalizer

import headway as hw
from headway.codecs import load_codec
from headway.config import override
from headway.data import IGNORE_INDEX
from headway.domains.masked import fill
from headway.domains.masked.recipes import masked
from headway.learn import TrainConfig
from headway.nn.models import TransformerConfig

T = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXTS = [
    "What say [MASK], my lord?",
    "I am the [MASK] of [MASK].",
    "[MASK] the king, (and [MASK]) in Rome",
]


@pytest.fixture(scope="module")
def play(data_dir: Path) -> str:
    return (data_dir / "lm/tinyshakespeare.txt").read_text()[:60_000]


def bert(folder: Path, play: str, kind: str = "BertForPreTraining") -> Any:
    """A random BERT with a tokenizer as BERT's is, trained on the play."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([play], trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    torch.manual_seed(0)
    model = getattr(T, kind)(T.BertConfig(vocab_size=500, max_position_embeddings=64, **SIZES)).eval()
    model.save_pretrained(folder)
    return model


def roberta(folder: Path, play: str) -> Any:
    """A random RoBERTa with a byte-level tokenizer whose mask takes the space before it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=499, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([play], trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    given = {f"{role}_token": name for role, name in names.items()}
    T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **given).save_pretrained(folder)
    torch.manual_seed(0)
    model = T.RobertaForMaskedLM(T.RobertaConfig(vocab_size=500, max_position_embeddings=66, **SIZES)).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("make", [bert, roberta])
@pytest.mark.parametrize("text", TEXTS)
def test_masks_are_filled_as_transformers_fills_them(tmp_path: Path, play: str, make: Any, text: str) -> None:
    theirs, tokenizer = make(tmp_path, play), T.AutoTokenizer.from_pretrained(tmp_path)
    inputs = tokenizer(text.replace("[MASK]", tokenizer.mask_token), return_tensors="pt")
    with torch.no_grad():
        output = theirs(**inputs)
    logits = output.prediction_logits if make is bert else output.logits
    wanted = logits[inputs["input_ids"] == tokenizer.mask_token_id].softmax(-1).topk(7)
    found = hw.load(tmp_path).fill(text, top=7)
    assert [[candidate.id for candidate in mask] for mask in found] == wanted.indices.tolist()
    for mask, probabilities in zip(found, wanted.values.tolist()):
        assert [candidate.probability for candidate in mask] == pytest.approx(probabilities, rel=1e-4)


def test_the_losses_of_pre_training_are_those_of_transformers(tmp_path: Path, play: str) -> None:
    theirs = bert(tmp_path, play)
    (tmp_path / "play.txt").write_text(play)
    model = hw.load(tmp_path).module
    assert isinstance(model.config, TransformerConfig)
    recipe = replace(masked(), model=model.config, train=TrainConfig(batch_tokens=512))
    recipe = override(recipe, {"task.next": True, "task.tokenizer": str(tmp_path)})
    task = recipe.task.open(recipe, [tmp_path / "play.txt"], tmp_path / "none")
    assert task.adapt(model.config) == model.config  # it has all the heads that are needed
    batch = next(task.batches("train"))
    (inputs, layout), (labels, unrelated) = batch.inputs, batch.targets
    with torch.no_grad():
        wanted = theirs(
            input_ids=inputs.ids,
            token_type_ids=inputs.types,
            attention_mask=layout.mask.long(),
            labels=torch.where(labels == IGNORE_INDEX, -100, labels),
            next_sentence_label=unrelated,
        )
        losses = task.loss(model, batch)
    assert load_codec(tmp_path).mask in inputs.ids
    found = sum(float(loss.total) / loss.count for loss in losses.values())
    assert found == pytest.approx(float(wanted.loss), rel=1e-5)


def test_a_trained_model_goes_to_transformers_and_back(tmp_path: Path, play: str) -> None:
    """What the recipe trains is a ModernBERT, with its tokenizer."""
    from headway.formats.published import save_published

    (tmp_path / "play.txt").write_text(play)
    settings = {"model.width": 32, "model.depth": 2, "model.heads": 2, "task.size": 500, "train.steps": 2}
    run = hw.train("masked", tmp_path / "play.txt", {**settings, "train.batch_tokens": 512}, run=tmp_path / "run")
    model = hw.load(run.directory)
    save_published(model.module, model.module.config, tmp_path / "out", model.usage)
    theirs = T.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == "ModernBertForMaskedLM"
    ids = torch.tensor([model.codec.encode("What say you, my lord?")])
    with torch.no_grad():
        difference = (theirs(input_ids=ids).logits - model.logits(ids)).abs().max()
    assert float(difference) < 1e-4
    assert fill(model.module, model.codec, "I am the [MASK].", 1)
