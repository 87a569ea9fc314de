"""Conversations, and preferences between two endings of one, from .jsonl files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from headway.data.input_files import ARCHIVES, File, expand_archives, find_files, resolve_named_splits
from headway.data.table_files import check_text, read_json_lines
from headway.errors import UserError, nearest
from headway.io.files import user_path

CHAT_KINDS = (".jsonl", *ARCHIVES)
ASSISTANT = "assistant"  # the role that is trained on

Message = Mapping[str, Any]  # role and content, both strings; other keys are for the template
Messages = tuple[Message, ...]


class Dialogue(NamedTuple):
    """A conversation, and its line in the file."""

    line: int
    messages: Messages


class Preference(NamedTuple):
    """Two endings of a conversation: the `chosen` messages after `prompt` are better than the `rejected` ones."""

    line: int
    prompt: Messages
    chosen: Messages
    rejected: Messages


def find_chat_files(paths: Iterable[Path | str]) -> list[File]:
    """The .jsonl files (compressed, in folders or archives) of paths, with the split that their names state."""
    user_paths = [user_path(path) for path in paths]
    if not user_paths:
        raise UserError("no conversation files; pass at least one .jsonl file")
    return resolve_named_splits(
        expand_archives([file for path in user_paths for file in find_files(path, CHAT_KINDS)], CHAT_KINDS)
    )


def read_chats(file: File) -> Iterator[Dialogue]:
    """The conversations in a file: `messages` with role and content, at least one of them from the assistant."""
    for number, row in read_json_lines(file):
        if "messages" not in row:
            raise _missing_key_error(file, number, row, "messages")
        messages = _messages(file, number, "messages", row["messages"])
        if not any(message["role"] == ASSISTANT for message in messages):
            raise UserError(f"{file}, line {number} has no assistant message to learn from; add one or remove the line")
        yield Dialogue(number, messages)


def read_preferences(file: File) -> Iterator[Preference]:
    """The preferences in a file: `prompt`, `chosen` and `rejected`, each a string or messages.

    Without a prompt, the common start of `chosen` and `rejected` is the prompt.
    """
    for number, row in read_json_lines(file):
        for key in ("chosen", "rejected"):
            if key not in row:
                raise _missing_key_error(file, number, row, key)
        prompt = _as_messages(file, number, row, "prompt", "user") if row.get("prompt") is not None else ()
        chosen, rejected = (_as_messages(file, number, row, key, ASSISTANT) for key in ("chosen", "rejected"))
        common = 0
        while not prompt and common < min(len(chosen), len(rejected)) and chosen[common] == rejected[common]:
            common += 1
        preference = Preference(number, prompt or chosen[:common], chosen[common:], rejected[common:])
        if preference.chosen == preference.rejected:
            raise UserError(f"{file}, line {number}: chosen and rejected are the same; remove the line")
        for key, ending in (("chosen", preference.chosen), ("rejected", preference.rejected)):
            if not ending or ending[-1]["role"] != ASSISTANT:
                raise UserError(f"{file}, line {number}: {key!r} does not end with an assistant message; add one")
        if not preference.prompt:
            raise UserError(
                f"{file}, line {number} has no prompt, and chosen and rejected start differently; add a prompt"
            )
        yield preference


def _as_messages(file: File, number: int, row: Mapping[str, Any], key: str, role: str) -> Messages:
    """Messages, or a string as one message with the role `role`."""
    value = row[key]
    if isinstance(value, str):
        return ({"role": role, "content": check_text(file, number, key, value)},)
    return _messages(file, number, key, value)


def _messages(file: File, number: int, key: str, value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise UserError(f"{file}, line {number}: {key!r} is {value!r}; use a list of messages with role and content")
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f"{file}, line {number}: {message!r} in {key!r} is not a message; add role and content")
        for part in ("role", "content"):
            check_text(file, number, part, message[part])
    return tuple(value)


def _missing_key_error(file: File, number: int, row: Mapping[str, Any], key: str) -> UserError:
    return UserError(f"{file}, line {number} has no key {key!r}; {nearest(key, row) if row else 'it is empty'}")
