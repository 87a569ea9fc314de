"""BERT's WordPiece: vocab.txt, one token per line (Wu et al. 2016, Devlin et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from headway.codecs.tokenizer_files import library_errors, read_text
from headway.errors import UserError

FILE = "vocab.txt"
MAX_WORD_LENGTH = 100  # characters; longer words are unknown


def read_wordpiece(path: Path, style: str, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer for a vocab.txt, which is the same in every style.

    tokenizer_config.json sets whether text is lower-cased (`do_lower_case`, default true), accents are removed
    (`strip_accents`, default with lower-casing), and Chinese characters are separate words (`tokenize_chinese_chars`).
    Control characters are always removed.
    """
    lines = read_text(path).split("\n")
    tokens = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    unknown = settings.get("unk_token") or "[UNK]"
    name = unknown.get("content") if isinstance(unknown, dict) else unknown
    if name not in vocabulary:
        raise UserError(f"{path} does not contain the unknown token {name!r:.80}; set it in tokenizer_config.json")
    with library_errors(path):
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=name, max_input_chars_per_word=MAX_WORD_LENGTH))
        if settings.get("do_basic_tokenize") is False:
            tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            tokenizer.normalizer = _normalizer(settings)
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _normalizer(settings: Mapping[str, Any]) -> normalizers.Normalizer:
    accents = settings.get("strip_accents")
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(settings.get("tokenize_chinese_chars", True)),
        strip_accents=None if accents is None else bool(accents),
        lowercase=bool(settings.get("do_lower_case", True)),
    )
