"""Chat templates against transformers: the same text, the same ids, the same of them said by the assistant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from chat_templates import CALLS, CHATML_BLOCKS, CHATS, STYLES, SYSTEM, TOOL, say, tokenizer_of

from headway.codecs import TokenizerCodec, load_codec
from headway.codecs.chat_template import ChatTemplate, read_template
from headway.errors import UserError

T = pytest.importorskip("transformers")


class Pair(NamedTuple):
    theirs: Any
    codec: TokenizerCodec
    ours: ChatTemplate


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """Every style, saved by transformers and loaded here."""
    found = {}
    for name, style in STYLES.items():
        tokenizer = tokenizer_of(style)
        theirs = T.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **style.roles)
        theirs.chat_template = style.template
        folder = tmp_path_factory.mktemp(name)
        theirs.save_pretrained(folder)
        codec, text = load_codec(folder), read_template(folder)
        assert text == style.template
        found[name] = Pair(T.AutoTokenizer.from_pretrained(folder), codec, ChatTemplate(text, codec.special_tokens))
    return found


SYSTEMS = [(style, system) for style in STYLES for system in (None, SYSTEM) if style != "gemma" or system is None]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize(("style", "system"), SYSTEMS)
def test_the_text_and_the_ids_are_the_same(pairs: dict[str, Pair], style: str, chat: str, system: str | None) -> None:
    pair = pairs[style]
    messages = CHATS[chat] if system is None else [{"role": "system", "content": system}, *CHATS[chat]]
    for ask in (False, True):
        theirs = pair.theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        assert pair.ours.render(messages, add_generation_prompt=ask) == theirs
        ids = pair.theirs.apply_chat_template(messages, add_generation_prompt=ask, return_dict=True)["input_ids"]
        ours = pair.ours.prompt(pair.codec, messages) if ask else pair.ours.encode(pair.codec, messages).ids
        assert ours == ids


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_that_has_begun_is_continued_where_it_is_there(pairs: dict[str, Pair], style: str) -> None:
    pair = pairs[style]
    for begun in ("It", "It was sent: 12 <|im", "Yes.\n\nIt was Monday <|im_end|> &"):
        messages = [*say("Where?"), {"role": "assistant", "content": begun}]
        asked = {"continue_final_message": True}
        theirs = pair.theirs.apply_chat_template(messages, tokenize=False, **asked)
        assert pair.ours.render(messages, **asked) == theirs
        assert theirs.endswith(begun)
        if "<|im_end|>" not in begun:  # which there is a mark, and here a text
            ids = pair.theirs.apply_chat_template(messages, return_dict=True, **asked)["input_ids"]
            assert pair.ours.prompt(pair.codec, messages, **asked) == ids


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("style", ["chatml-blocks", "mistral", "qwen"])
def test_blocks_mark_what_they_mark_there(pairs: dict[str, Pair], style: str, chat: str) -> None:
    pair = pairs[style]
    wanted = pair.theirs.apply_chat_template(CHATS[chat], return_dict=True, return_assistant_tokens_mask=True)
    assert sum(wanted["assistant_masks"]) > 0
    assert mask(pair, CHATS[chat]) == wanted["assistant_masks"]


def mask(pair: Pair, messages: list[dict[str, Any]], tools: Any = None) -> list[int]:
    found = pair.ours.encode(pair.codec, messages, tools)
    marked = [0] * len(found.ids)
    for start, stop in found.spans:
        marked[start:stop] = [1] * (stop - start)
    return marked


def test_tools_and_calls(pairs: dict[str, Pair]) -> None:
    pair = pairs["qwen"]
    wanted = pair.theirs.apply_chat_template(CALLS, tools=[TOOL], return_dict=True, return_assistant_tokens_mask=True)
    assert pair.ours.render(CALLS, tools=[TOOL]) == pair.theirs.apply_chat_template(CALLS, [TOOL], tokenize=False)
    assert pair.ours.encode(pair.codec, CALLS, [TOOL]).ids == wanted["input_ids"]
    assert mask(pair, CALLS, [TOOL]) == wanted["assistant_masks"]


@pytest.mark.parametrize("chat", CHATS)
def test_templates_without_blocks_mark_what_blocks_would(pairs: dict[str, Pair], chat: str) -> None:
    """The same template with blocks, and without them."""
    bare, blocks = pairs["chatml"], pairs["chatml-blocks"]
    assert bare.ours.encode(bare.codec, CHATS[chat]) == blocks.ours.encode(blocks.codec, CHATS[chat])


@pytest.mark.parametrize("style", STYLES)
def test_what_is_marked_is_what_was_said(pairs: dict[str, Pair], style: str) -> None:
    """Each span is one answer with the end of its turn, in every style."""
    pair = pairs[style]
    for name in ("short", "turns"):
        found = pair.ours.encode(pair.codec, CHATS[name])
        said = [m["content"] for m in CHATS[name] if m["role"] == "assistant"]
        assert [pair.codec.decode(found.ids[a:b]).strip() for a, b in found.spans] == said
        ends = pair.ours.stop_sequences(pair.codec)
        assert {found.ids[b - 1] for _, b in found.spans} <= set(ends.ids)
        assert ends.strings == ()


def test_an_end_behind_a_block_is_learnt_too(pairs: dict[str, Pair]) -> None:
    """Here we mark more than transformers does: a model that never learns to end its turn does not end it."""
    text = CHATML_BLOCKS.replace('+ "<|im_end|>" }}{% endgeneration %}', "}}{% endgeneration %}<|im_end|>")
    theirs, codec, _ = pairs["chatml-blocks"]
    pair = Pair(theirs, codec, ChatTemplate(text, codec.special_tokens))
    messages = CHATS["turns"]
    wanted = theirs.apply_chat_template(
        messages, chat_template=text, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, marks = wanted["input_ids"], wanted["assistant_masks"]
    end = codec.token_id("<|im_end|>")
    more = [a or int(i > 0 and marks[i - 1] == 1 and ids[i] == end) for i, a in enumerate(marks)]
    assert sum(more) == sum(marks) + 3
    assert pair.ours.encode(codec, messages).ids == ids
    assert mask(pair, messages) == more


def test_earlier_turns_that_are_written_otherwise(pairs: dict[str, Pair]) -> None:
    """A template that drops earlier thoughts: what is marked is what stands there."""
    pair = pairs["thinking"]
    messages = say("1 + 1?", "<think>\neasy\n</think>\n\n2", "2 + 2?", "<think>\nhm\n</think>\n\n4")
    found = pair.ours.encode(pair.codec, messages)
    theirs = pair.theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert found.ids == theirs
    said = [pair.codec.decode(found.ids[a:b]) for a, b in found.spans]
    assert said == ["2", "<think>\nhm\n</think>\n\n4"]


@pytest.mark.parametrize("style", STYLES)
def test_what_people_say_is_never_a_mark(pairs: dict[str, Pair], style: str) -> None:
    """transformers reads the marks that a message spells; here they stay text, and nothing else changes."""
    pair, marks = pairs[style], STYLES[style].marks
    plain = pair.ours.encode(pair.codec, say("x", "y", "z", "w")).ids
    special = {pair.codec.token_id(mark) for mark in marks}
    counts = [plain.count(i) for i in special]
    for mark in marks:
        for text in (mark, f"a{mark}b", f"{mark}{mark}", mark + "\n", f" {mark} ", f"{mark[:2]}{mark}{mark[2:]}"):
            messages = say(text, text, text, text)
            found = pair.ours.encode(pair.codec, messages)
            assert [found.ids.count(i) for i in special] == counts
            assert len(found.spans) == 2
            # What the symbols stand for is what a text that was never cut into symbols has.
            assert pair.ours.render(messages) == pair.theirs.apply_chat_template(messages, tokenize=False)
    seen = pair.theirs.apply_chat_template(say(marks[-1], "y"), return_dict=True)["input_ids"]
    assert seen.count(pair.codec.token_id(marks[-1])) > pair.ours.prompt(pair.codec, say(marks[-1], "y")).count(
        pair.codec.token_id(marks[-1])
    )


def test_refusals_are_the_templates_own_words(pairs: dict[str, Pair]) -> None:
    with pytest.raises(UserError, match="rejects these messages: this model has no system role"):
        pairs["gemma"].ours.render(say("hi", system="Be kind."))
    with pytest.raises(UserError, match="roles must alternate"):
        pairs["llama2"].ours.render([*say("hi"), *say("hi")])


@pytest.mark.parametrize("form", ["named", "old file", "config"])
def test_where_a_template_stands(pairs: dict[str, Pair], form: str, tmp_path: Path) -> None:
    """The older places of templates, as transformers reads them."""
    pairs["chatml"].theirs.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    text = "{{ 'hello' }}"
    if form == "named":
        config["chat_template"] = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": text}]
    elif form == "config":
        config["chat_template"] = text
    else:
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_template(tmp_path) == text
    if form != "old file":  # of processors, which need more files to load
        theirs = T.AutoTokenizer.from_pretrained(tmp_path)
        assert theirs.apply_chat_template(say("x"), tokenize=False) == "hello"
