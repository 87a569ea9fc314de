"""Special and added tokens: begin, end, unknown, pad, mask, and tokens beyond the model's vocabulary at their published
ids. Published settings take precedence over the tokenizer class's defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from string import punctuation
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors

from headway.codecs.tokenizer_files import object_or_empty
from headway.errors import UserError

END_OF_TEXT = "<|endoftext|>"
# Names in published tokenizers, the more specific first. GPT-2 uses one token for begin and end.
BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|startoftext|>", "[BOS]", END_OF_TEXT)
EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "[SEP]", "[EOS]", END_OF_TEXT)
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
MASK_NAMES = ("[MASK]", "<mask>")
CONFIG_FILE, TOKENS_MAP_FILE = "tokenizer_config.json", "special_tokens_map.json"


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens by their role in tokenizer_config.json; None if there is no such token."""

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    sep: str | None = None
    pad: str | None = None
    cls: str | None = None
    mask: str | None = None

    @property
    def start_token(self) -> str | None:
        """The token before a text; BERT's is its `cls`."""
        return self.bos or self.cls

    @property
    def end_token(self) -> str | None:
        """The token after a text; BERT's is its `sep`."""
        return self.eos or self.sep

    def settings(self) -> dict[str, str]:
        """The entries for tokenizer_config.json."""
        return {f"{role}_token": spelling for role, spelling in asdict(self).items() if spelling is not None}


ROLES = tuple(field.name for field in fields(SpecialTokens))
NO_SPECIAL_TOKENS = SpecialTokens()


def configured_tokens(settings: Mapping[str, Any], default: SpecialTokens | None = None) -> SpecialTokens | None:
    """The special tokens in settings, with missing ones from `default`. None if neither defines any."""
    spellings = {}
    for role in ROLES:
        if f"{role}_token" in settings:
            value = settings[f"{role}_token"]
            text = value.get("content") if isinstance(value, dict) else value
            spellings[role] = text if isinstance(text, str) and text else None
    if not spellings and default is None:
        return None
    return replace(default or NO_SPECIAL_TOKENS, **spellings)


def read_settings(path: Path) -> dict[str, Any]:
    """The tokenizer_config.json at `path`, with missing special tokens taken from special_tokens_map.json next to
    it.
    """
    return {**object_or_empty(path.with_name(TOKENS_MAP_FILE)), **object_or_empty(path)}


def guess_special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Guess the special tokens: those that the tokenizer adds around a text, or else tokens with well-known names."""
    before, after = surrounding_tokens(tokenizer)
    start = before or _first_special(tokenizer, BOS_NAMES)
    stop = after or _first_special(tokenizer, EOS_NAMES)
    tokens = SpecialTokens(pad=_first_special(tokenizer, PAD_NAMES), mask=_first_special(tokenizer, MASK_NAMES))
    tokens = replace(tokens, cls=start) if start == "[CLS]" else replace(tokens, bos=start)
    return replace(tokens, sep=stop) if stop == "[SEP]" else replace(tokens, eos=stop)


def special_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that decoding skips."""
    return frozenset(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)


def surrounding_tokens(tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The first token that a tokenizer adds before a text, and the last that it adds after it."""
    if tokenizer.post_processor is None:
        return None, None
    plain = tokenizer.encode("a", add_special_tokens=False).tokens
    with_special = tokenizer.encode("a", add_special_tokens=True).tokens
    start = next((i for i in range(len(with_special)) if with_special[i : i + len(plain)] == plain), 0)
    end = start + len(plain)
    return (with_special[0] if start else None), (with_special[-1] if end < len(with_special) else None)


def _first_special(tokenizer: Tokenizer, names: Iterable[str]) -> str | None:
    special = special_ids(tokenizer)
    return next((name for name in names if tokenizer.token_to_id(name) in special), None)


_BERT = SpecialTokens(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = SpecialTokens(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_GPT2 = SpecialTokens(bos=END_OF_TEXT, eos=END_OF_TEXT, unk=END_OF_TEXT)
_CLIP = SpecialTokens(bos="<|startoftext|>", eos=END_OF_TEXT, unk=END_OF_TEXT, pad=END_OF_TEXT)

# Marian's source and target files.
MARIAN_FILES = {"source": ("source.spm", "vocab.json"), "target": ("target.spm", "target_vocab.json")}
STYLE_TOKENS: Mapping[str, SpecialTokens] = {
    "bert": _BERT,
    "debertav2": _BERT,
    "esm": SpecialTokens(unk="<unk>", eos="<eos>", pad="<pad>", cls="<cls>", mask="<mask>"),
    "roberta": _ROBERTA,
    "xlmroberta": _ROBERTA,
    "gpt2": _GPT2,
    "qwen2": SpecialTokens(eos=END_OF_TEXT, pad=END_OF_TEXT),
    "whisper": SpecialTokens(bos=END_OF_TEXT, eos=END_OF_TEXT, unk=END_OF_TEXT, pad=END_OF_TEXT),
    "clip": _CLIP,
    "openaigpt": SpecialTokens(unk="<unk>"),
    "llama": SpecialTokens(bos="<s>", eos="</s>", unk="<unk>"),
    "gemma": SpecialTokens(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>"),
    "t5": SpecialTokens(eos="</s>", unk="<unk>", pad="<pad>"),
    "siglip": SpecialTokens(eos="</s>", unk="<unk>", pad="</s>"),
    "marian": SpecialTokens(eos="</s>", unk="<unk>", pad="<pad>"),
    "byt5": SpecialTokens(eos="</s>", unk="<unk>", pad="<pad>"),
    **dict.fromkeys(("mbart", "mbart50", "nllb"), _ROBERTA),
    "m2m100": replace(_ROBERTA, cls=None, mask=None),
}
"""The special tokens of each style, for published files that do not name them."""

_STYLE_ALIASES = {
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


_UNSUPPORTED_NAMES = "ctrl fsmt xlm biogpt herbert blenderbotsmall phobert bertweet bertjapanese cpmant roformer luke"
UNSUPPORTED_STYLES = frozenset(_UNSUPPORTED_NAMES.split())
"""Styles with the same file names but other rules for splitting text."""


def style_of(settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A folder's style, from its tokenizer class or its model type; empty if there is neither."""
    for value in (settings.get("tokenizer_class"), config.get("tokenizer_class"), config.get("model_type")):
        if isinstance(value, str) and value:
            name = re.sub(r"(tokenizer)?(fast)?$", "", value, flags=re.IGNORECASE).lower()
            name = re.sub(r"[^a-z0-9]", "", name)
            style = _STYLE_ALIASES.get(name, name)
            if style:
                return style
    return ""


def add_siglip_normalizer(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Add SigLIP's normalisation, which is missing from its files: lower case, no ASCII punctuation, no extra
    spaces.
    """
    if not str(settings.get("tokenizer_class", "")).startswith("SiglipTokenizer"):
        return
    steps: list[Any] = [] if settings.get("do_lower_case") is False else [normalizers.Lowercase()]
    steps += [normalizers.Replace(Regex(f"[{re.escape(punctuation)}]"), "")]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    normalizer = tokenizer.normalizer
    tokenizer.normalizer = normalizers.Sequence([*steps, *([] if normalizer is None else [normalizer])])  # type: ignore[assignment]


def set_post_processor(
    tokenizer: Tokenizer, style: str, special_tokens: SpecialTokens, settings: Mapping[str, Any]
) -> None:
    """Add the style's template, which adds special tokens around one or two texts, to a tokenizer without one.

    For decoders, `add_bos_token` and `add_eos_token` in the settings take precedence.
    """
    has_template = tokenizer.post_processor is not None
    if style in SOURCE_LANGUAGES and (not has_template or style_of(settings, {}) == style):
        _set_language_template(tokenizer, style, special_tokens.eos, settings)
        return
    if has_template and style in (*_STYLES_WITH_EOS, *SOURCE_LANGUAGES):
        return
    before, after = surrounding_tokens(tokenizer)
    add_start = _bool_setting(settings, "add_bos_token", bool(before) if has_template else style in _STYLES_WITH_BOS)
    add_end = _bool_setting(settings, "add_eos_token", bool(after) if has_template else style in _STYLES_WITH_EOS)
    first = _existing_token(tokenizer, special_tokens.start_token) if add_start else []
    last = _existing_token(tokenizer, special_tokens.end_token) if add_end else []
    if (bool(first), bool(last)) == (bool(before), bool(after)):
        return
    if style == "whisper":
        first = [name for name in _WHISPER_PREFIX if tokenizer.token_to_id(name) is not None]
    join = last if style in ("roberta", "xlmroberta", "clip") else [] if last else first
    second = "1" if style == "bert" or not last else "0"
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=[*first, "$A", *last],
        pair=[*first, "$A", *last, *join, f"$B:{second}", *(f"{name}:{second}" for name in last)],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in {*first, *last}],  # type: ignore[misc]
    )


_STYLES_WITH_BOS = ("bert", "esm", "roberta", "xlmroberta", "clip", "llama", "gemma")
_STYLES_WITH_EOS = ("bert", "esm", "roberta", "xlmroberta", "clip", "t5", "byt5", "siglip", "marian", "whisper")
_WHISPER_PREFIX = ("<|startoftranscript|>", "<|notimestamps|>")


SOURCE_LANGUAGES = {"mbart": "en_XX", "mbart50": "en_XX", "m2m100": "en", "nllb": "eng_Latn"}
"""Styles with language tokens, and the source language if the files name none."""


def _set_language_template(tokenizer: Tokenizer, style: str, eos: str | None, settings: Mapping[str, Any]) -> None:
    """Put the source's language before a text, or after its end token (mBART, and NLLB until 2023)."""
    name = settings.get("src_lang") or SOURCE_LANGUAGES[style]
    token = f"__{name}__" if style == "m2m100" else str(name)
    ids = {spelling: tokenizer.token_to_id(spelling) for spelling in (token, str(eos))}
    if None in ids.values():
        raise UserError(f"the tokenizer lacks {token!r:.40} or {eos!r:.40}; download its files again")
    is_suffix = style == "mbart" or (style == "nllb" and settings.get("legacy_behaviour") is True)
    before, after = ([], [str(eos), token]) if is_suffix else ([token], [str(eos)])
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=list(ids.items())
    )


def listed_tokens(settings: Mapping[str, Any]) -> list[str]:
    """The further special tokens that a tokenizer_config.json or special_tokens_map.json lists, in order."""
    names = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    contents = [name.get("content") if isinstance(name, dict) else name for name in names]
    return [content for content in contents if isinstance(content, str)]


def _bool_setting(settings: Mapping[str, Any], key: str, default: bool) -> bool:
    value = settings.get(key)
    return value if isinstance(value, bool) else default


def _existing_token(tokenizer: Tokenizer, name: str | None) -> list[str]:
    """A list with the name if it is a token; otherwise empty."""
    return [name] if name is not None and tokenizer.token_to_id(name) is not None else []


ADDED_TOKENS_FILE = "added_tokens.json"
_MAX_GAP = 1 << 17  # ids further than this beyond the vocabulary are rejected
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
Added = Mapping[int, AddedToken]


def published_tokens(settings: Mapping[str, Any], directory: Path) -> dict[int, AddedToken]:
    """The tokens in added_tokens.json and in the added_tokens_decoder of tokenizer_config.json, by id."""
    spellings, source = object_or_empty(directory / ADDED_TOKENS_FILE), str(directory)
    tokens = {
        _parse_id(token_id, source): AddedToken(name, normalized=False) for name, token_id in spellings.items() if name
    }
    decoder = settings.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise UserError(f"added_tokens_decoder in {source} is not a mapping of ids to tokens; download it again")
    tokens.update((_parse_id(token_id, source), read_token(state, source)) for token_id, state in decoder.items())
    return tokens


def read_token(state: Any, source: str) -> AddedToken:
    """An added token from its JSON."""
    if not isinstance(state, dict) or not isinstance(state.get("content"), str) or not state["content"]:
        raise UserError(f"{source} adds a token without text: {state!r:.80}; download it again")
    return AddedToken(state["content"], **{flag: bool(state[flag]) for flag in _FLAGS if flag in state})


def _parse_id(token_id: Any, source: str) -> int:
    try:
        return int(token_id)
    except (TypeError, ValueError):
        raise UserError(f"{source} adds a token at the invalid id {token_id!r:.80}; download it again") from None


def add_tokens(tokenizer: Tokenizer, added: Added, source: str) -> None:
    """Add tokens at their ids, and fill gaps with unused tokens. Raises UserError for an id that is taken."""
    missing = sorted(i for i, token in added.items() if tokenizer.token_to_id(token.content) is None)
    # The library assigns this id to the next added token.
    size = max(
        [tokenizer.get_vocab_size(with_added_tokens=False), *(i + 1 for i in tokenizer.get_added_tokens_decoder())]
    )
    if missing and missing[-1] > size + _MAX_GAP:
        last_id = missing[-1]
        raise UserError(
            f"{source} adds {added[last_id].content!r} with id {last_id}, far beyond its {size} tokens; download the "
            "files again"
        )
    gaps = set(range(size, missing[-1] if missing else size)) - set(missing)
    tokens = {i: AddedToken(f"<|unused_{i}|>", special=True, normalized=False) for i in sorted(gaps)}
    tokens.update(added)
    for special, run in groupby(sorted(tokens.items()), key=lambda item: item[1].special):
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token for _, token in run])
    for token_id, token in added.items():
        existing_id = tokenizer.token_to_id(token.content)
        if existing_id != token_id:
            raise UserError(
                f"{source} adds {token.content!r} with id {token_id}, but its id is {existing_id}; download it again"
            )
