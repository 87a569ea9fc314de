"""Prompts from .jsonl and .txt files, checked by the reward and encoded for the model that answers them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headway.codecs import TokenizerCodec
from headway.codecs.chat_template import ChatTemplate
from headway.data.input_files import ARCHIVES, expand_archives, find_files, read_lines, resolve_named_splits
from headway.data.splits import split_code
from headway.data.table_files import check_text, read_json_lines
from headway.errors import UserError, nearest
from headway.formats.usage import Usage
from headway.generate import Limits
from headway.io.files import user_path
from headway.rewards import REWARDS

_KINDS = (".jsonl", ".txt", *ARCHIVES)
Row = Mapping[str, Any]


class PromptTable(NamedTuple):
    """Rows with a "prompt" and what its reward needs, the codes of the splits in their file names, uint8 [N], and where
    each row comes from.
    """

    rows: list[Row]
    named_splits: np.ndarray
    locations: list[str]


def read_prompts(paths: Iterable[Path | str], reward: str, common: Row) -> PromptTable:
    """The prompts in files: lines of .txt, or objects of .jsonl with "prompt". `common` has values for rows without
    their own. Raises UserError for a row that the reward cannot check.
    """
    found = [file for path in paths for file in find_files(user_path(path), _KINDS)]
    check: Any = None
    if reward in REWARDS:
        module, _, name = REWARDS[reward].check.partition(":")
        check = getattr(import_module(module), name)
    rows: list[Row] = []
    codes: list[int] = []
    locations: list[str] = []
    for file in resolve_named_splits(expand_archives(found, _KINDS)):
        if file.kind == ".jsonl":
            lines = read_json_lines(file)
        else:
            lines = ((line, {"prompt": text}) for line, text in enumerate(read_lines(file), 1) if text.strip())
        for line, row in lines:
            if "prompt" not in row:
                raise UserError(
                    f"{file}, line {line} has no key 'prompt'; {nearest('prompt', row) if row else 'add it'}"
                )
            if not check_text(file, line, "prompt", row["prompt"]):
                raise UserError(f"{file}, line {line} has an empty prompt; write one or remove the line")
            row = {**common, **row}
            try:
                if check is not None:
                    check(row)
            except ValueError as error:
                raise UserError(f"{file}, line {line} {error}") from error
            rows.append(row)
            codes.append(0 if file.named_split is None else split_code(file.named_split))
            locations.append(f"{file}, line {line}")
    return PromptTable(rows, np.array(codes, np.uint8), locations)


class PromptEncoder:
    """How a model takes prompts and where its answers end: with a chat template, a prompt is the user's message;
    otherwise the model continues it.
    """

    def __init__(self, codec: TokenizerCodec, usage: Usage) -> None:
        self.codec, self.usage = codec, usage
        self.template: ChatTemplate | None = None
        if usage.template is not None:
            self.template = ChatTemplate(usage.template, codec.special_tokens, "the model's chat template")

    def encode(self, prompt: str) -> list[int]:
        """The ids that the answer continues."""
        if self.template is not None:
            return self.template.prompt(self.codec, [{"role": "user", "content": prompt}])
        ids = self.codec.encode(prompt)
        return ids if self.codec.bos_id is None else [self.codec.bos_id, *ids]

    def limits(self, max_tokens: int, stop: str | None) -> Limits:
        """At most so many tokens, up to the end of the assistant's turn, the end token, or the string `stop`."""
        strings = () if stop is None else (stop,)
        if self.template is None:
            return Limits(max_tokens, strings, self.usage.ends)
        ends = self.template.stop_sequences(self.codec)
        return Limits(max_tokens, (*strings, *ends.strings), (*ends.ids, *self.usage.ends))
