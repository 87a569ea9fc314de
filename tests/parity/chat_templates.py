"""Chat templates in the styles that published models have, and tokenizers with the marks that each writes."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHATML = """\
{%- for message in messages %}
    {{- "<|im_start|>" ~ message.role ~ "\\n" ~ message.content ~ "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""
CHATML_BLOCKS = """\
{%- for message in messages %}
    {{- "<|im_start|>" + message["role"] + "\\n" }}
    {%- if message["role"] == "assistant" %}
        {%- generation %}{{ message["content"] + "<|im_end|>" }}{% endgeneration %}{{ "\\n" }}
    {%- else %}
        {{- message["content"] + "<|im_end|>" + "\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""
LLAMA2 = """\
{% set told = messages %}{% set system = "" %}
{% if messages[0]["role"] == "system" %}
{% set told = messages[1:] %}{% set system = "<<SYS>>\\n" + messages[0]["content"] + "\\n<</SYS>>\\n\\n" %}
{% endif %}
{% for message in told %}
{% if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
{{ raise_exception("roles must alternate, the user first") }}
{% endif %}
{% if message["role"] == "user" %}
{{- bos_token + "[INST] " + (system if loop.first else "") + message["content"].strip() + " [/INST]" }}
{%- else %}
{{- " " + message["content"].strip() + " " + eos_token }}
{%- endif %}
{% endfor %}"""
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" + message.content | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{% endif %}
"""
GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == "system" %}{{ raise_exception("this model has no system role") }}{% endif %}
{%- for message in messages %}
    {%- if (message.role == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {%- set role = "model" if message.role == "assistant" else message.role %}
    {{- "<start_of_turn>" + role + "\\n" + message.content | trim + "<end_of_turn>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif %}
"""
MISTRAL = """\
{%- set ns = namespace(system="", asked=0) %}
{%- if messages[0].role == "system" %}{% set ns.system = messages[0].content ~ "\\n\\n" %}{% endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- set ns.asked = ns.asked + 1 %}
        {{- "[INST] " ~ (ns.system if ns.asked == 1 else "") ~ message.content ~ "[/INST]" }}
    {%- elif message.role == "assistant" %}
        {%- generation %}{{ " " ~ message.content ~ eos_token }}{% endgeneration %}
    {%- elif message.role != "system" %}
        {{- raise_exception("only user, assistant and system speak") }}
    {%- endif %}
{%- endfor %}
"""
QWEN = """\
{%- set system = messages[0].content if messages[0].role == "system" else "You are a helpful assistant." %}
{{- "<|im_start|>system\\n" + system }}
{%- if tools %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{ "\\n" + tool | tojson }}{% endfor %}
    {{- "\\n</tools>" }}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "system" and not loop.first %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" %}
        {{- "<|im_start|>assistant\\n" }}
        {%- generation %}
        {%- if message.content %}{{ message.content }}{% endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set made = call.function if call.function is defined else call %}
            {{- '\\n<tool_call>\\n{"name": "' + made.name + '", "arguments": ' + made.arguments | tojson + "}" }}
            {{- "\\n</tool_call>" }}
        {%- endfor %}
        {{- "<|im_end|>" }}
        {%- endgeneration %}
        {{- "\\n" }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem.role != "tool" %}{{ "<|im_start|>user" }}{% endif %}
        {{- "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{ "<|im_end|>\\n" }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""
THINKING = """\
{%- set ns = namespace(asked=0) %}
{%- for message in messages %}{% if message.role == "user" %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if "</think>" in content and loop.index0 < ns.asked %}
        {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
    {%- endif %}
    {{- "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""


class Style(NamedTuple):
    """A template; the kind of tokenizer that goes with it, its marks, and other tokens that it adds as plain words."""

    template: str
    kind: str
    marks: tuple[str, ...]
    roles: dict[str, str]
    words: tuple[str, ...] = ()


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_SENTENCE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
STYLES = {
    "chatml": Style(CHATML, "bytes", _IM, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "chatml-blocks": Style(CHATML_BLOCKS, "bytes", _IM, {"eos_token": "<|im_end|>"}),
    "llama2": Style(LLAMA2, "prepend", ("<unk>", "<s>", "</s>"), _SENTENCE),
    "llama3": Style(LLAMA3, "bytes", _HEADERS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "gemma": Style(
        GEMMA,
        "pieces",
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    ),
    "mistral": Style(MISTRAL, "first", ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), _SENTENCE),
    "qwen": Style(QWEN, "bytes", _IM, {"eos_token": "<|im_end|>"}, ("<tool_call>", "</tool_call>")),
    "thinking": Style(THINKING, "bytes", _IM, {"eos_token": "<|im_end|>"}, ("<think>", "</think>")),
}
_CORPUS = [
    "Where is my card? It was sent on Monday, and it should be with you by Friday.",
    "You are a helpful assistant who answers in one sentence. user assistant system model tool",
    "What is the capital of France? The capital of France is Paris, a city of two million.",
    "def add(a, b):\n    return a + b\n\nThank you, that's all I wanted to know!",
] * 4


def tokenizer_of(style: Style) -> Tokenizer:
    """BPE on bytes, or on characters as sentencepiece has it: with a space before each text ("prepend"), before the
    first one ("first"), or before none ("pieces")."""
    if style.kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=style.roles.get("unk_token", "<pad>"), fuse_unk=True))
        if style.kind == "first":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            prepend = [normalizers.Prepend("▁")] if style.kind == "prepend" else []
            tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Replace("▁", " ")
        alphabet = ["▁", "\n", *map(chr, range(33, 127))]
    trainer = trainers.BpeTrainer(vocab_size=440, initial_alphabet=alphabet, special_tokens=list(style.marks))
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in style.words])
    return tokenizer


def say(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation: the user's and the assistant's texts in turn."""
    told = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]
    return told if system is None else [{"role": "system", "content": system}, *told]


CHATS = {
    "short": say("Where is my card?", "It was sent on Monday."),
    "turns": say("What is 1 + 1?", "2", "And twice that?", "That's 4, of course!", "Thanks", "You are welcome."),
    "white space": say("  def f(a):\n    return a\n", " Yes,\n\n  it does. ", "\n\nreally?", "ok "),
    "other letters": say(
        "Où est-il ? 你好 \U0001f600", "Là-bas, e\u0301videmment \U0001f469\u200d\U0001f680.", "ß", "½"
    ),
    "asked": say("Hello", "Good day. How can I help?", "What is the capital of France?"),
}
SYSTEM = "You are a helpful assistant who answers in one sentence."
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather <now> & "here", in °C',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it warm in Paris and in Rome?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
            for city in ("Paris", "Rome")
        ],
    },
    {"role": "tool", "name": "weather", "content": '{"celsius": 21}'},
    {"role": "tool", "name": "weather", "content": '{"celsius": 28}'},
    {"role": "assistant", "content": "21 and 28 degrees: yes."},
]
