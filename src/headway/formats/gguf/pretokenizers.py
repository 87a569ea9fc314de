"""How a byte-level BPE splits a text into words, by the name that GGUF has for it (tokenizer.ggml.pre).

The patterns are those of llama.cpp (src/llama-vocab.cpp, 2026), or of the tokenizer.json that it names as its source.
Patterns of one name apply one after the other: each splits the pieces that the one before has left. Missing are names
whose words llama.cpp finds by code (kimi-k2, afmoe, superbpe), whose tokens are not bytes (gemma4, sarvam-moe,
granite-embed-multi-311m, whitespace), and two with long lists of letters (deepseek-llm, granite-embed-multi-97m).
"""

from __future__ import annotations

from typing import NamedTuple

from headway.codecs.vocabularies import CL100K, DIGITS, GPT2, O200K, QWEN2


class WordPattern(NamedTuple):
    """`compose` normalises to NFC first; `whole_words` prefers tokens that are words to merges."""

    patterns: tuple[str, ...]
    compose: bool = False
    whole_words: bool = False


_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
_EVERY_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_CHINESE = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_EAST_ASIAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SENTENCES = r" ?[^(\s|.,!?…。，、।۔،)]+"
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
)
_SPACES = "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))

_LLAMA3 = WordPattern((CL100K,), whole_words=True)
_LLAMA3_NAMES = (
    "llama-bpe",
    "llama3",
    "llama-v3",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "jina-v5-nano",
)
_GPT2_NAMES = ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum")
_GPT2_NAMES += ("exaone4", "modern-bert", "roberta-bpe", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de")
_GPT2_NAMES += ("jina-v1-en", "jina-v2-code")
_DIGITS_NAMES = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")

WORDS: dict[str, WordPattern] = {
    "default": WordPattern((_PUNCTUATION.replace("`", ""), GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(_GPT2_NAMES, WordPattern((GPT2,))),
    **dict.fromkeys(_DIGITS_NAMES, WordPattern((DIGITS,))),
    **dict.fromkeys(_LLAMA3_NAMES, _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), WordPattern((CL100K,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), WordPattern((QWEN2,), compose=True)),
    **dict.fromkeys(
        ("stablelm2", "hunyuan", "solar-open", "megrez", "kormo", "f2llmv2", "grok-2"), WordPattern((QWEN2,))
    ),
    "qwen35": WordPattern(
        (QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"),),
        compose=True,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), WordPattern((O200K,))),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), WordPattern((r"\d{1,3}(?=(?:\d{3})*\b)", O200K))),
    "tekken": WordPattern((_TEKKEN,), whole_words=True),
    "deepseek-coder": WordPattern(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, _EVERY_DIGIT)),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), WordPattern((_THREE_DIGITS, _CHINESE, _DEEPSEEK))
    ),
    "spark2_5": WordPattern(
        (_THREE_DIGITS, _CHINESE, _DEEPSEEK.replace(r"[\r\n]*|\s*[\r\n]+", r"|[\r\n]"), _EVERY_DIGIT)
    ),
    "youtu": WordPattern((_YOUTU, O200K.replace(r"\p{N}{1,3}", r"\p{N}")), whole_words=True),
    "falcon": WordPattern((_PUNCTUATION, GPT2, "[0-9][0-9][0-9]")),
    "minicpm5": WordPattern((_THREE_DIGITS, CL100K.replace(r"\p{N}{1,3}", r"\p{N}+")), whole_words=True),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), WordPattern((_SENTENCES,))),
    "viking": WordPattern((_SENTENCES, _EVERY_DIGIT)),
    **dict.fromkeys(
        ("bailingmoe", "bailingmoe2", "llada-moe"), WordPattern((QWEN2.replace(r"\s*[\r\n]+", r"\s*[\r\n]"),))
    ),
    "seed-coder": WordPattern((QWEN2.replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}\r\n]+"),)),
    "ufakzeka": WordPattern((QWEN2[QWEN2.index(r"[^\r\n\p{L}") :],)),
    "laguna": WordPattern((r"[^\n]+|[\n]+", QWEN2)),
    "exaone-moe": WordPattern(
        (
            QWEN2.replace(r"\p{L}+", r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+")
            .replace(r"[^\s\p{L}\p{N}]+[\r\n]*", r"[^\s\p{L}\p{N}]+[\r\n/]?")
            .replace(r"\s*[\r\n]+", r"\s*[\r\n]"),
        )
    ),
    "jais-2": WordPattern((CL100K.replace(r"|\s+(?!\S)|\s+", rf"{_SPACES}|\s{{1,2}}(?!\S)|\s{{1}}"),)),
    "chameleon": WordPattern(
        (
            *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\t\n]|    |  )"),
            *(_EVERY_DIGIT, r"[\p{P}!-/:-@\[-`{-~]", GPT2),
        )
    ),
}
BOS_PRETOKENIZERS = (*_LLAMA3_NAMES, "tekken", "chameleon")  # for which llama.cpp puts BOS before a text
