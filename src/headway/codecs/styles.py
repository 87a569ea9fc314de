"""What a tokenizer's class says beside its files: which symbols have a role, and what stands around a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import punctuation
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, processors

from headway.codecs.marks import END_OF_TEXT, Marks, around

_BRACKETS = Marks(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_TAGS = Marks(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_TEXTS = Marks(bos=END_OF_TEXT, eos=END_OF_TEXT, unk=END_OF_TEXT)
_CLIP = Marks(bos="<|startoftext|>", eos=END_OF_TEXT, unk=END_OF_TEXT, pad=END_OF_TEXT)

# The files of Marian's two sides.
SIDES = {"source": ("source.spm", "vocab.json"), "target": ("target.spm", "target_vocab.json")}
MARKS: Mapping[str, Marks] = {
    "bert": _BRACKETS,
    "roberta": _TAGS,
    "xlmroberta": _TAGS,
    "gpt2": _TEXTS,
    "qwen2": Marks(eos=END_OF_TEXT, pad=END_OF_TEXT),
    "whisper": Marks(bos=END_OF_TEXT, eos=END_OF_TEXT, unk=END_OF_TEXT, pad=END_OF_TEXT),
    "clip": _CLIP,
    "openaigpt": Marks(unk="<unk>"),
    "llama": Marks(bos="<s>", eos="</s>", unk="<unk>"),
    "gemma": Marks(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>"),
    "t5": Marks(eos="</s>", unk="<unk>", pad="<pad>"),
    "siglip": Marks(eos="</s>", unk="<unk>", pad="</s>"),
    "marian": Marks(eos="</s>", unk="<unk>", pad="<pad>"),
}
"""The marks of each style, where the published files do not name them."""

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
"""Styles whose vocabularies have the same names of files, and that split texts by rules of their own."""


def inferred(tokenizer: Tokenizer) -> str:
    """The style that the symbols of a vocabulary tell, where nobody names one."""
    known = [name for name, style in _TELLING if tokenizer.token_to_id(name) is not None]
    return dict(_TELLING)[known[0]] if known else ""


_TELLING = (("[CLS]", "bert"), ("<|startoftext|>", "clip"), ("</s>", "roberta"), (END_OF_TEXT, "gpt2"))


def style_of(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The style that a folder names: by its tokenizer's class, else by its model's type; empty where it names none."""
    for value in (settings.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type")):
        if isinstance(value, str) and value:
            name = re.sub(r"(tokenizer)?(fast)?$", "", value, flags=re.IGNORECASE).lower()
            name = re.sub(r"[^a-z0-9]", "", name)
            style = _SAME.get(name, name)
            if style:
                return style
    return ""


def simplify(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Drop what SigLIP's tokenizer drops before it reads, which its files do not say: case, ASCII marks, spaces."""
    if not str(settings.get("tokenizer_class", "")).startswith("SiglipTokenizer"):
        return
    steps: list[Any] = [] if settings.get("do_lower_case") is False else [normalizers.Lowercase()]
    steps += [normalizers.Replace(Regex(f"[{re.escape(punctuation)}]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    known = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps, *([] if known is None else [known])])  # type: ignore[assignment]


def frame(tokenizer: Tokenizer, style: str, marks: Marks, settings: Mapping[str, Any]) -> None:
    """Give a tokenizer the frame of its style, where it has none: what it puts before and after a text, or two.

    Of a decoder, `add_bos_token` and `add_eos_token` in its settings have the last word.
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
    """The name alone, where it is a symbol."""
    return [name] if name is not None and tokenizer.token_to_id(name) is not None else []
