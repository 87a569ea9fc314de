"""Conversations and choices in files: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_data import chats, choices, opened, questions, say, small, write

from headway.data.dialogues import find_chat_files, read_chats, read_preferences
from headway.domains import recipe as find_recipe
from headway.domains.chat.recipes import instruct, preference
from headway.errors import ConfigError, UserError
from headway.learn import Recipe


@pytest.fixture
def told(data_dir: Path, tmp_path: Path) -> Path:
    return write(tmp_path / "chats.jsonl", chats(data_dir))


def test_conversations_and_choices_are_read(data_dir: Path, tmp_path: Path) -> None:
    rows = chats(data_dir, 4)
    file = find_chat_files([write(tmp_path / "a.jsonl", rows)])[0]
    assert [list(chat.messages) for chat in read_chats(file)] == [row["messages"] for row in rows]
    assert [chat.line for chat in read_chats(file)] == [1, 2, 3, 4]
    question, answer = [{"role": "user", "content": "Who?"}], [{"role": "assistant", "content": "I."}]
    other = [{"role": "assistant", "content": "You."}]
    forms = [
        {"prompt": "Who?", "chosen": "I.", "rejected": "You."},
        {"prompt": question, "chosen": answer, "rejected": other},
        {"chosen": question + answer, "rejected": question + other},
        {"prompt": None, "chosen": question + answer, "rejected": question + other, "score": 3},
    ]
    file = find_chat_files([write(tmp_path / "b.jsonl", forms)])[0]
    for line, choice in enumerate(read_preferences(file), 1):
        assert choice == (line, tuple(question), tuple(answer), tuple(other))


USER, YES = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"message": [USER, YES]}, "has no key 'messages'; did you mean 'message'"),
        ({}, "has no key 'messages'; it is empty"),
        ({"messages": "hello"}, "'messages' is 'hello'; use a list of messages with role and content"),
        ({"messages": []}, r"'messages' is \[\]; use a list"),
        ({"messages": [USER, "y"]}, "'y' in 'messages' is not a message; add role and content"),
        ({"messages": [{"role": "user"}, YES]}, "in 'messages' is not a message; add role and content"),
        ({"messages": [{"role": "user", "content": 5}, YES]}, "'content' is 5; write a string"),
        ({"messages": [{"role": "user", "content": "\ud800"}, YES]}, "half a surrogate pair"),
        ({"messages": [{"role": "us er", "content": ""}, YES]}, "message 0 has the role 'us er'; pass a mapping"),
        ({"messages": [USER]}, "no assistant message to learn from; add one or remove the line"),
    ],
)
def test_what_is_no_conversation_is_said_with_its_line(row: Any, said: str, data_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*chats(data_dir, 2), row]))
    with pytest.raises(UserError, match=rf"chats\.jsonl, line 3.*{said}") as found:
        opened(small(instruct(), **{"task.codec": "byte", "task.size": None}), path)
    assert "\n" not in str(found.value)


ASKED = {"prompt": "x", "chosen": "y", "rejected": "z"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "x", "chosen": "y"}, "has no key 'rejected'; choose from"),
        ({**ASKED, "chosen": 5}, "'chosen' is 5; use a list of messages"),
        ({**ASKED, "rejected": "y"}, "chosen and rejected are the same; remove the line"),
        ({**ASKED, "rejected": [USER]}, "'rejected' does not end with an assistant message; add one"),
        ({"chosen": "y", "rejected": "z"}, "has no prompt, and chosen and rejected start differently; add a prompt"),
        ({**ASKED, "prompt": []}, r"'prompt' is \[\]; use a list of messages"),
    ],
)
def test_what_is_no_choice_is_said_with_its_line(row: Any, said: str, data_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "choices.jsonl", [*choices(data_dir, 2), row])
    with pytest.raises(UserError, match=rf"choices\.jsonl, line 3.*{said}"):
        opened(small(preference(), **{"task.codec": "byte", "task.size": None}), path)


def test_files_and_settings_that_do_not_fit(told: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"messages": \n')
    other = tmp_path / "chats.txt"
    other.write_text("hello")
    cases = {
        r"broken\.jsonl, line 1 is not JSON": (instruct(), {}, broken),
        "chats.txt": (instruct(), {}, other),
        "has no key 'chosen'": (preference(), {}, told),
        r"\d+ of \d+ conversations are longer than the limit of 21 tokens: line \d+ has \d+; raise": (
            instruct(),
            {"task.context": 20},
            told,
        ),
        r"all \d+ conversations are longer": (instruct(), {"task.context": 20, "task.drop_long": True}, told),
        "task.context 4096 exceeds": (instruct(), {"task.context": 4096, "model.context": 128}, told),
        "task.context 1 is too short for a conversation": (instruct(), {"task.context": 1}, told),
        "task.beta is 0": (preference(), {"task.beta": 0.0}, told),
        "but orpo needs the cross-entropy": (preference(), {"task.loss": "orpo", "task.anchor": 0.0}, told),
        "but ipo has no smoothing": (preference(), {"task.loss": "ipo", "task.smoothing": 0.1}, told),
        "task.target_margin is -1": (preference(), {"task.loss": "simpo", "task.target_margin": -1.0}, told),
        "task.target_margin is 2.0, but dpo does not aim": (preference(), {"task.target_margin": 2.0}, told),
        "task.smoothing is 0.5": (preference(), {"task.smoothing": 0.5}, told),
        "preference batches are counted in tokens": (preference(), {"train.batch_size": 4}, told),
        "is less than a row of 160": (instruct(), {"train.batch_tokens": 64}, told),
    }
    for said, (recipe, settings, path) in cases.items():
        with pytest.raises(UserError, match=said):
            adapted(recipe, {"task.codec": "byte", "task.size": None, **settings}, path)
    other_model = replace(small(instruct()), model=find_recipe("masked").model)
    with pytest.raises(ConfigError, match="need a model that generates text"):
        opened(other_model, told)


def adapted(recipe: Recipe, settings: dict[str, Any], path: Path) -> None:
    found = small(recipe, **settings)
    opened(found, path).adapt(found.model)


def test_long_conversations_are_left_out_where_that_is_asked(told: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = small(instruct(), **{"task.drop_long": True, "task.context": 40})
    task = opened(recipe, told)
    task.adapt(recipe.model)
    assert "conversations that are too long" in caplog.text
    assert task.examples.cache.lengths[task.examples.rows_of("train")].max() <= 41


def test_equal_questions_are_on_one_side(data_dir: Path, tmp_path: Path) -> None:
    asked = questions(data_dir, 40)
    rows = [{"messages": say(question, f"{answer} {n}")} for question, answer in asked for n in range(3)]
    task = opened(small(instruct()), write(tmp_path / "chats.jsonl", rows))
    found = {name: task.examples.rows_of(name).tolist() for name in ("train", "validation", "test")}
    assert sum(len({row // 3 for row in side}) for side in found.values()) == 40
    assert sum(map(len, found.values())) == 120
