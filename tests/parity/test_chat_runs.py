"""A model of transformers, taught conversations on the command line, exported, and used there again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import STYLES, say, tokenizer_of

import headway as hw
from headway.app.cli.main import main

T = pytest.importorskip("transformers")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer that has marks of turns, as save_pretrained writes both."""
    style = STYLES["chatml"]
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=tokenizer_of(style), **style.roles)
    tokenizer.chat_template = style.template
    torch.manual_seed(0)
    config = T.LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        bos_token_id=None,
    )
    folder = tmp_path / "start"
    T.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, data_dir: Path, preferred: bool) -> Path:
    """Forty short questions to a bank, and what they are about."""
    with (data_dir / "textcls/banking77/train.csv").open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file) if len(row["text"]) < 50][:400:10]
    with path.open("w") as out:
        for i, (text, about) in enumerate(rows):
            choice = {"prompt": text, "chosen": about, "rejected": rows[i - 1][1] + "?"}
            out.write(json.dumps(choice if preferred else {"messages": say(text, about)}) + "\n")
    return path


SMALL = ("train.steps=3", "train.batch_tokens=1024", "train.precision=fp32", "task.context=200")
SPLIT = ("task.split.validation=0.2", "task.split.test=0.0")


@pytest.mark.parametrize("lora", [(), ("--lora", "4")])
@pytest.mark.parametrize("recipe", ["instruct", "preference"])
def test_taught_here_used_there(
    recipe: str, lora: tuple[str, ...], start: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headway.app.api.available", lambda: False)  # pages have tests of their own
    monkeypatch.setattr(
        "headway.domains.chat.task._MAX_REPLY_TOKENS", 4
    )  # and what they show takes longer than a few steps
    data, run, out = (
        write(tmp_path / "data.jsonl", data_dir, recipe == "preference"),
        tmp_path / "run",
        tmp_path / "out",
    )
    given = ["--data", str(data), "--from", str(start), "--run", str(run), *lora]
    # An adapter of preferences that learns faster is a fault, at which the start is kept.
    rate = "optim.lr=0.001" if recipe == "preference" and lora else "optim.lr=0.01"
    assert main(["train", recipe, *given, "--set", *SMALL, rate, *SPLIT]) == 0
    assert main(["export", str(run), str(out)]) == 0
    ours = hw.load(run)
    theirs, tokenizer = T.AutoModelForCausalLM.from_pretrained(out).eval(), T.AutoTokenizer.from_pretrained(out)
    assert theirs.config.model_type == "llama"
    messages = say("Where is my card?")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    template = STYLES["chatml"].template
    assert tokenizer.chat_template == template
    before = T.AutoModelForCausalLM.from_pretrained(start).eval()
    with torch.inference_mode():
        wanted = theirs(torch.tensor([ids])).logits
        assert torch.allclose(ours.logits([ids]), wanted, atol=1e-4)
        assert not torch.allclose(before(torch.tensor([ids])).logits, wanted, atol=1e-2)
        said = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :]
    assert ours.chat(messages, 12, temperature=0) == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert hw.load(out).chat(messages, 12, temperature=0) == ours.chat(messages, 12, temperature=0)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in listed(theirs.generation_config.eos_token_id)


def listed(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]
