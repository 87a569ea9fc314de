"""The one text codec: a `tokenizers.Tokenizer` of any kind, trained here or published, and its file."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from headway.codecs.base import StreamDecoder
from headway.codecs.stream import ByteStream, FallbackStream, WindowStream, decoder_steps, special_ids
from headway.errors import UserError

FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
# Names that published tokenizers use, the more specific first: GPT-2's one symbol is both begin and end.
BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|startoftext|>", "[BOS]", END_OF_TEXT)
END = ("</s>", "<|end_of_text|>", "<eos>", "[SEP]", "[EOS]", END_OF_TEXT)
SECTION = 1 << 16  # characters; tokenizers keeps about a hundred bytes for each while it works on a text
# Between lines that have something on both sides of the break, tokenizers that split words never join.
_CUT = re.compile(r"(?<=\S\n)(?=\S)")
_PROBE = ("The word, its\n", "line-2 end.\n", "(Next) \u00fc")
# How the tokenizers trained here undo the space that they put at the start of each line.
LINE_SPACE_STEPS = [
    {"type": "Replace", "pattern": {"String": "\n "}, "content": "\n"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]


class TokenizerCodec:
    """Text <-> ids by the `tokenizers` library. Begin and end are found by their well-known names."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()  # nothing is cut in silence
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # a text that spells "</s>" must not end the sequence
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        special = special_ids(tokenizer)
        self.begin = self._first(BEGIN, special)
        self.end = self._first(END, special)
        self.unknown = self._unknown()

    def _first(self, names: Iterable[str], special: frozenset[int]) -> int | None:
        ids = map(self.tokenizer.token_to_id, names)
        return next((i for i in ids if i is not None and i in special), None)

    def _unknown(self) -> int | None:
        name = getattr(self.tokenizer.model, "unk_token", None)
        if name is not None:
            return self.tokenizer.token_to_id(name)
        return json.loads(self.tokenizer.model.__getstate__()).get("unk_id")  # only Unigram has one

    def encode(self, text: str) -> list[int]:
        if len(text) > SECTION:
            return self.encode_batch([text])[0]
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        cut = [list(self.sections(text)) for text in texts]
        flat = [section for sections in cut for section in sections]
        encodings = iter(self.tokenizer.encode_batch_fast(flat, add_special_tokens=False))
        return [[i for _ in sections for i in next(encodings).ids] for sections in cut]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def sections(self, text: str) -> Iterator[str]:
        """Cut after about 65,000 characters, at the next line break between two words.

        A tokenizer that joins lines, or that marks the start of a text, gets the text whole.
        """
        start = 0
        while len(text) - start > SECTION and self._separates_lines:
            cut = _CUT.search(text, start + SECTION)
            if cut is None:
                break
            yield text[start : cut.start()]
            start = cut.start()
        yield text[start:] if start else text

    @cached_property
    def _separates_lines(self) -> bool:
        whole = self.encode("".join(_PROBE))
        return whole == [i for line in _PROBE for i in self.encode(line)]

    def stream(self) -> StreamDecoder:
        steps = decoder_steps(self.tokenizer)
        if steps and steps[0]["type"] == "ByteLevel" and steps[1:] in ([], LINE_SPACE_STEPS):
            return ByteStream(self.tokenizer, line_space=steps[1:] == LINE_SPACE_STEPS)
        if any(step["type"] == "ByteFallback" for step in steps):
            return FallbackStream(self.tokenizer)
        return WindowStream(self.tokenizer)

    def save(self, path: Path) -> None:
        path = Path(path)
        file = path if path.suffix == ".json" else path / FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f"{file.name}.{os.getpid()}.part")
        beside.write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")
        os.replace(beside, file)

    def fingerprint(self) -> str:
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()


def load_codec(path: Path | str) -> TokenizerCodec:
    """The codec of a tokenizer.json, or of the folder that holds one. UserError where there is none."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} does not exist; give a tokenizer.json or a folder that holds one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        reason = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read as a tokenizer ({reason}); give a tokenizer.json") from None
    if tokenizer.get_vocab_size() == 0:
        raise UserError(f"{file} holds no symbols; give the tokenizer.json of a trained tokenizer")
    return TokenizerCodec(tokenizer)
