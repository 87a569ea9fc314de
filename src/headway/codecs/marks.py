"""Special tokens: begin, end, unknown, pad, mask. Published settings take precedence over defaults of the tokenizer's
class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from string import punctuation
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, processors

from headway.codecs.base import special_ids
from headway.codecs.files import object_or_empty

END_OF_TEXT = "<|endoftext|>"
# Names in published tokenizers, the more specific first: GPT-2 has one token for begin and end.
BEGIN = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|startoftext|>", "[BOS]", END_OF_TEXT)
END = ("</s>", "<|end_of_text|>", "<eos>", "[SEP]", "[EOS]", END_OF_TEXT)
PAD = ("<pad>", "[PAD]", "<|pad|>")
MASK = ("[MASK]", "<mask>")
CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"


@dataclass(frozen=True)
class RoleTokens:
    """The spellings of special tokens by their role in tokenizer_config.json; None if there is no such token."""

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    sep: str | None = None
    pad: str | None = None
    cls: str | None = None
    mask: str | None = None

    @property
    def begin(self) -> str | None:
        """The token before a text; BERT's is its `cls`."""
        return self.bos or self.cls

    @property
    def end(self) -> str | None:
        """The token after a text; BERT's is its `sep`."""
        return self.eos or self.sep

    def settings(self) -> dict[str, str]:
        """The entries for tokenizer_config.json."""
        return {f"{role}_token": spelling for role, spelling in asdict(self).items() if spelling is not None}


ROLES = tuple(field.name for field in fields(RoleTokens))
NO_MARKS = RoleTokens()


def said(settings: Mapping[str, Any], otherwise: RoleTokens | None = None) -> RoleTokens | None:
    """The special tokens in settings, with missing ones from `default`. None if neither defines any."""
    found = {role: _spelling(settings[f"{role}_token"]) for role in ROLES if f"{role}_token" in settings}
    if not found and otherwise is None:
        return None
    return replace(otherwise or NO_MARKS, **found)


def read_settings(path: Path) -> dict[str, Any]:
    """tokenizer_config.json at `path`, with missing special tokens from special_tokens_map.json next to it."""
    return {**object_or_empty(path.with_name(MAP)), **object_or_empty(path)}


def _spelling(value: Any) -> str | None:
    """The spelling of a special token, which is a string or a mapping with the string as its content."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def guessed(tokenizer: Tokenizer) -> RoleTokens:
    """Guess the special tokens: those that the tokenizer adds around a text, or else tokens with well-known names."""
    before, after = around(tokenizer)
    begin = before or _first(tokenizer, BEGIN)
    end = after or _first(tokenizer, END)
    marks = RoleTokens(pad=_first(tokenizer, PAD), mask=_first(tokenizer, MASK))
    marks = replace(marks, cls=begin) if begin == "[CLS]" else replace(marks, bos=begin)
    return replace(marks, sep=end) if end == "[SEP]" else replace(marks, eos=end)


def around(tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The first token that a tokenizer adds before a text, and the last that it adds after it."""
    if tokenizer.post_processor is None:
        return None, None
    plain = tokenizer.encode("a", add_special_tokens=False).tokens
    framed = tokenizer.encode("a", add_special_tokens=True).tokens
    at = next((i for i in range(len(framed)) if framed[i : i + len(plain)] == plain), 0)
    end = at + len(plain)
    return (framed[0] if at else None), (framed[-1] if end < len(framed) else None)


def _first(tokenizer: Tokenizer, names: Iterable[str]) -> str | None:
    special = special_ids(tokenizer)
    return next((name for name in names if tokenizer.token_to_id(name) in special), None)


_BRACKETS = RoleTokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_TAGS = RoleTokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_TEXTS = RoleTokens(bos=END_OF_TEXT, eos=END_OF_TEXT, unk=END_OF_TEXT)
_CLIP = RoleTokens(bos="<|startoftext|>", eos=END_OF_TEXT, unk=END_OF_TEXT, pad=END_OF_TEXT)

# Marian's files for source and target.
SIDES = {"source": ("source.spm", "vocab.json"), "target": ("target.spm", "target_vocab.json")}
MARKS: Mapping[str, RoleTokens] = {
    "bert": _BRACKETS,
    "roberta": _TAGS,
    "xlmroberta": _TAGS,
    "gpt2": _TEXTS,
    "qwen2": RoleTokens(eos=END_OF_TEXT, pad=END_OF_TEXT),
    "whisper": RoleTokens(bos=END_OF_TEXT, eos=END_OF_TEXT, unk=END_OF_TEXT, pad=END_OF_TEXT),
    "clip": _CLIP,
    "openaigpt": RoleTokens(unk="<unk>"),
    "llama": RoleTokens(bos="<s>", eos="</s>", unk="<unk>"),
    "gemma": RoleTokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>"),
    "t5": RoleTokens(eos="</s>", unk="<unk>", pad="<pad>"),
    "siglip": RoleTokens(eos="</s>", unk="<unk>", pad="</s>"),
    "marian": RoleTokens(eos="</s>", unk="<unk>", pad="<pad>"),
}
"""The special tokens of each style, for published files that do not name them."""

_SAME = {
    **dict.fromkeys(("bart", "longformer", "led"), "roberta"),
    **dict.fromkeys(("gptneo", "gptj", "codegen", "opt", "phi", "gptneox", "gpt2bpe", "distilgpt2"), "gpt2"),
    **dict.fromkeys(("qwen2moe", "qwen3", "qwen3moe", "qwen2vl"), "qwen2"),
    **dict.fromkeys(("distilbert", "electra", "mobilebert", "convbert", "layoutlm", "mpnet", "funnel"), "bert"),
    **dict.fromkeys(("mistral", "mixtral", "codellama", "phi3"), "llama"),
    **dict.fromkeys(("gemma2", "gemma3", "gemma3text"), "gemma"),
    **dict.fromkeys(("mt5", "umt5", "longt5", "switchtransformers"), "t5"),
    **dict.fromkeys(("clipmodel", "siglip2"), "clip"),
    **dict.fromkeys(("pretrained", "tokenizersbackend", "auto", "bertgeneration", "sentencepiecebackend"), ""),
}


_OTHER = "ctrl fsmt xlm biogpt herbert blenderbotsmall phobert bertweet bertjapanese esm cpmant roformer luke"
OTHER = frozenset(_OTHER.split())
"""Styles with the same file names, but other rules for splitting text."""


def inferred(tokenizer: Tokenizer) -> str:
    """Infer the style from the tokens of a vocabulary."""
    known = [name for name, style in _TELLING if tokenizer.token_to_id(name) is not None]
    return dict(_TELLING)[known[0]] if known else ""


_TELLING = (("[CLS]", "bert"), ("<|startoftext|>", "clip"), ("</s>", "roberta"), (END_OF_TEXT, "gpt2"))


def style_of(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The style of a folder, from its tokenizer class or its model type; empty if there is neither."""
    for value in (settings.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type")):
        if isinstance(value, str) and value:
            name = re.sub(r"(tokenizer)?(fast)?$", "", value, flags=re.IGNORECASE).lower()
            name = re.sub(r"[^a-z0-9]", "", name)
            style = _SAME.get(name, name)
            if style:
                return style
    return ""


def simplify(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Add SigLIP's normalisation, which its files do not contain: drop case, ASCII punctuation and extra spaces."""
    if not str(settings.get("tokenizer_class", "")).startswith("SiglipTokenizer"):
        return
    steps: list[Any] = [] if settings.get("do_lower_case") is False else [normalizers.Lowercase()]
    steps += [normalizers.Replace(Regex(f"[{re.escape(punctuation)}]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    known = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps, *([] if known is None else [known])])  # type: ignore[assignment]


def frame(tokenizer: Tokenizer, style: str, marks: RoleTokens, settings: Mapping[str, Any]) -> None:
    """Add the style's template, which adds special tokens around one or two texts, to a tokenizer without one.

    For decoders, `add_bos_token` and `add_eos_token` in the settings take precedence.
    """
    has_frame = tokenizer.post_processor is not None
    if has_frame and style in _ENDS:
        return
    before, after = around(tokenizer)
    begin = _wanted(settings, "add_bos_token", bool(before) if has_frame else style in _BEGINS)
    end = _wanted(settings, "add_eos_token", bool(after) if has_frame else style in _ENDS)
    first = _symbol(tokenizer, marks.begin) if begin else []
    last = _symbol(tokenizer, marks.end) if end else []
    if (bool(first), bool(last)) == (bool(before), bool(after)):
        return
    if style == "whisper":
        first = [name for name in _WHISPER if tokenizer.token_to_id(name) is not None]
    join = last if style in ("roberta", "xlmroberta", "clip") else [] if last else first
    second = "1" if style == "bert" or not last else "0"
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *join, f"$B:{second}", *(f"{name}:{second}" for name in last)],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in {*first, *last}],  # type: ignore[misc]
    )


_BEGINS = ("bert", "roberta", "xlmroberta", "clip", "llama", "gemma")
_ENDS = ("bert", "roberta", "xlmroberta", "clip", "t5", "siglip", "marian", "whisper")
_WHISPER = ("<|startoftranscript|>", "<|notimestamps|>")


def _wanted(settings: Mapping[str, Any], key: str, otherwise: bool) -> bool:
    value = settings.get(key)
    return value if isinstance(value, bool) else otherwise


def _symbol(tokenizer: Tokenizer, name: str | None) -> list[str]:
    """A list with the name if it is a token; otherwise empty."""
    return [name] if name is not None and tokenizer.token_to_id(name) is not None else []
