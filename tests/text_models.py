"""Small random models of transformers that read text, with tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "Pearls are made by oysters, which cover a grain of sand with thousands of thin layers of nacre.",
    "The lighthouse of Alexandria, built under Ptolemy II, was over 100 metres tall; earthquakes destroyed it.",
    "In 1843 Ada Lovelace published what many call the first program, for a machine that was never finished!",
    "Naïve Bayes assumes independence - and works surprisingly well, e.g. for e-mail filters (spam).",
)
QUESTIONS = ("Who wrote the first program?", "How are pearls made?", "How tall was the lighthouse of Alexandria?")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
NLI = {"id2label": {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}}
TWO = {"id2label": {0: "entailment", 1: "not_entailment"}}


def perturb(model: Any) -> None:
    """So that no norm is 1 and no bias 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.eval().parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


def wordpiece() -> Any:
    """A tokenizer of BERT's kind that splits most words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *QUESTIONS], trainer)
    cls, sep = (("[CLS]", 2), ("[SEP]", 3))
    tokenizer.post_processor = processors.BertProcessing(sep, cls)
    tokenizer.decoder = decoders.WordPiece()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return T.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=128, model_input_names=inputs, **names
    )


def byte_level() -> Any:
    """A tokenizer of RoBERTa's kind, whose tokens begin with their space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *QUESTIONS], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    return T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)


def save(folder: Path, stem: str, head: str, **settings: Any) -> Path:
    """A small random model with its tokenizer."""
    tokenizer = byte_level() if stem == "Roberta" else wordpiece()
    size = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    size |= {"intermediate_size": 48, "max_position_embeddings": 130 if stem == "Roberta" else 128}
    if stem == "DistilBert":
        size = {"vocab_size": len(tokenizer), "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
        size |= {"max_position_embeddings": 128}
    pad = tokenizer.pad_token_id
    if "id2label" in settings:
        settings["label2id"] = {name: number for number, name in settings["id2label"].items()}
    theirs = getattr(T, f"{stem}For{head}")(getattr(T, f"{stem}Config")(pad_token_id=pad, **size, **settings))
    perturb(theirs)
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_causal(folder: Path, tied: bool = True) -> Path:
    """A small Qwen3 with its chat tokens, and the tokens "yes" and "no"."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, *QUESTIONS, INSTRUCTION, *["yes no"] * 50], trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>", "yes", "no"])
    tokenizer.decoder = decoders.ByteLevel()
    fast = T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    torch.manual_seed(0)
    config = T.Qwen3Config(
        vocab_size=len(fast) + 3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
    )
    theirs = T.Qwen3ForCausalLM(config)
    perturb(theirs)
    theirs.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def change(file: Path, **settings: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, **settings}))
