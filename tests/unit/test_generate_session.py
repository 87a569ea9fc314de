"""Sessions: each sequence ends for itself, and neither batch nor cache changes what it says."""

from __future__ import annotations

import math

import pytest
import torch
from generate_models import BEGIN, END, language_model, random_rows, translator

from headway.codecs import TokenizerCodec, train_codec
from headway.errors import ConfigError, UserError
from headway.generate import GREEDY, Limits, Sampling, Session, score_ids
from headway.generate.sequences import TextStream
from headway.nn.kernels import deterministic

SAMPLED = Sampling(temperature=1.2, top_p=0.95, repetition_penalty=1.1, seed=5)
PROMPTS = random_rows([4, 9, 1, 6, 6, 2, 12, 3], 23)
SHORT = Limits(max_new_tokens=15, stop_ids=(END,))


@pytest.fixture(scope="module")
def codec() -> TokenizerCodec:
    return train_codec("byte", ["bytes need no text"])


def naive_greedy(prompt: list[int], count: int) -> list[int]:
    """Everything computed anew for each symbol."""
    model, ids = language_model(), list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            symbol = int(model.logits(torch.tensor([ids]))[0, -1].argmax())
            if symbol == END:
                break
            ids.append(symbol)
    return ids[len(prompt) :]


def test_greedy_is_greedy() -> None:
    found = Session(language_model()).generate(PROMPTS, GREEDY, SHORT)
    assert [c.ids for c in found] == [naive_greedy(prompt, 15) for prompt in PROMPTS]
    assert len({len(c.ids) for c in found}) > 2  # rows leave at different steps
    assert {c.finish_reason for c in found} == {"stop", "length"}
    assert all(c.finish_reason == ("length" if len(c.ids) == 15 else "stop") for c in found)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_batched_is_single_is_cached_in_deterministic_mode(sampling: Sampling) -> None:
    with deterministic():
        whole = Session(language_model()).generate(PROMPTS, sampling, SHORT)
        parts = Session(language_model(), rows=3).generate(PROMPTS, sampling, SHORT)
        alone = [Session(language_model()).generate([prompt], sampling, SHORT)[0] for prompt in PROMPTS]
        greedy = [naive_greedy(prompt, 15) for prompt in PROMPTS]
        scored = [score_ids(language_model(), [p + c.ids])[0][len(p) - 1 :] for p, c in zip(PROMPTS, whole)]
    tokens = [(c.ids, c.logprobs, c.finish_reason) for c in whole]
    assert tokens == [(c.ids, c.logprobs, c.finish_reason) for c in parts]
    assert tokens == [(c.ids, c.logprobs, c.finish_reason) for c in alone]
    assert (sampling is SAMPLED) or greedy == [c.ids for c in whole]
    assert scored == [c.logprobs for c in whole]


def test_equal_prompts_differ_and_seeds_repeat() -> None:
    session = Session(language_model())
    first, second = (session.generate([[2, 3]] * 4, SAMPLED, SHORT) for _ in range(2))
    assert [c.ids for c in first] == [c.ids for c in second]
    assert len({tuple(c.ids) for c in first}) == 4


def test_encoder_decoders_generate_with_sources() -> None:
    sources = random_rows([5, 2, 7], 23, seed=3)
    session = Session(translator(), rows=2)
    with deterministic():
        whole = session.generate([[BEGIN]] * 3, SAMPLED, SHORT, sources)
        alone = [session.generate([[BEGIN]], SAMPLED, SHORT, [source])[0] for source in sources]
    assert [c.ids for c in whole] == [c.ids for c in alone]
    assert len({tuple(c.ids) for c in whole}) == 3


def test_the_context_ends_a_sequence() -> None:
    """Learned positions end at the context, also for rows that wait for others to finish."""
    found = Session(language_model(context=14)).generate(PROMPTS, GREEDY, Limits(100))
    assert [c.finish_reason for c in found] == ["length"] * len(PROMPTS)
    assert [len(c.ids) for c in found] == [14 - len(prompt) for prompt in PROMPTS]


def test_ends(codec: TokenizerCodec) -> None:
    """The codec's end symbol, stop ids, and neither of them in what is given back."""
    model = language_model(codec.vocab_size, context=None)
    assert codec.eos_id is not None
    with torch.no_grad():
        model.heads["vocabulary"].project.weight.zero_()  # all symbols alike, so that draws are by the seed alone
    flat = Sampling(seed=0)
    session, many = Session(model, codec), [[i] for i in range(20)]
    plain = session.generate(many, flat, Limits(100))
    ended = [c for c in plain if c.finish_reason == "stop"]
    assert ended
    assert all(codec.eos_id not in c.ids for c in plain)
    ignored = session.generate(many, flat, Limits(100, ignore_end=True))
    assert all(len(c.ids) == 100 and c.finish_reason == "length" for c in ignored)
    assert any(codec.eos_id in c.ids for c in ignored)
    for one, other in zip(plain, ignored):
        assert one.ids == other.ids[: len(one.ids)]
    stopped = session.generate(many, flat, Limits(100, stop_ids=(65, 66), ignore_end=True))
    for one, other in zip(stopped, ignored):
        cut = next((i for i, symbol in enumerate(other.ids) if symbol in (65, 66)), 100)
        assert one.ids == other.ids[:cut]


def test_stop_strings_never_show(codec: TokenizerCodec) -> None:
    model = language_model(codec.vocab_size, context=None)
    with torch.no_grad():  # two letters, alike
        head = model.heads["vocabulary"].project.weight
        head.zero_()
        a, b = codec.encode("ab")
    logits = torch.full((codec.vocab_size,), -100.0)
    logits[[a, b]] = 0.0
    head_forward = model.heads["vocabulary"].forward
    model.heads["vocabulary"].forward = lambda x: head_forward(x) + logits  # type: ignore[method-assign]
    session, sampling = Session(model, codec), Sampling(seed=1)
    free = session.generate([[a]] * 30, sampling, Limits(60)), ("aabba", "babab")
    found = session.generate([[a]] * 30, sampling, Limits(60, stop=free[1]))
    for one, other in zip(free[0], found):
        places = [at for at in map(one.text.find, free[1]) if at >= 0]
        assert other.text == (one.text[: min(places)] if places else one.text)
        assert other.finish_reason == ("stop" if places else "length")
        assert one.ids[: len(other.ids)] == other.ids  # the symbols that spell the stop string were generated
    streamed = "".join(session.stream([a], sampling, Limits(60, stop=free[1])))
    assert streamed == found[0].text


def test_stop_text_is_held_back_only_while_it_may_be_one(codec: TokenizerCodec) -> None:
    stream = TextStream(codec, [], ("END", "\n\n"))
    pieces = [stream.push(symbol) for symbol in codec.encode("an E\nENEN")]
    assert pieces == ["a", "n", " ", "", "E", "\n", "", "EN", ""]
    assert stream.finish() == "EN"
    for symbol in codec.encode("x END y"):
        stream.push(symbol)
    assert stream.stopped
    assert stream.finish() == ""


def test_text_continues_the_prompt() -> None:
    """A word codec writes the space between the prompt's last word and the first new one."""
    codec = train_codec("word", ["the cat sat on the mat . the dog sat"])
    stream = TextStream(codec, codec.encode("the cat"), ())
    assert "".join(stream.push(symbol) for symbol in codec.encode("the dog")[1:]) == " dog"


def test_half_characters_wait(codec: TokenizerCodec) -> None:
    stream = TextStream(codec, [], ())
    assert [stream.push(symbol) for symbol in codec.encode("é")] == ["", "é"]
    stream.push(codec.encode("é")[0])
    assert stream.finish() == "\ufffd"


def test_events_tell_every_step(codec: TokenizerCodec) -> None:
    session = Session(language_model(codec.vocab_size), codec)
    events = list(session.events(PROMPTS, SAMPLED, Limits(12)))
    for number, completion in enumerate(session.generate(PROMPTS, SAMPLED, Limits(12))):
        own = [event for event in events if event.sequence == number]
        assert [event.id for event in own if event.id is not None] == completion.ids
        assert "".join(event.text for event in own) == completion.text == own[-1].completion.text
        assert len(completion.logprobs) == len(completion.ids)
        assert completion.tokens_per_second > 0


def test_a_stream_may_be_left_and_leaves_no_mode_behind(codec: TokenizerCodec) -> None:
    model = language_model(codec.vocab_size).train()
    stream = Session(model, codec).stream([2, 3], Sampling(seed=0), Limits(20, ignore_end=True))
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert model.training


def test_nothing_to_do() -> None:
    assert Session(language_model()).generate([]) == []


def test_bad_input_is_refused_before_work() -> None:
    session = Session(language_model(context=8))
    with pytest.raises(UserError, match="prompt of 9 tokens exceeds the context of 8"):
        session.stream([2] * 9)
    with pytest.raises(UserError, match="prompt of 8 tokens fills the context of 8"):
        session.events([[2], [2] * 8])
    with pytest.raises(UserError, match="cannot continue an empty prompt"):
        session.generate([[]])
    with pytest.raises(UserError, match="prompt contains id 23, but this model has ids 0 to 22"):
        session.generate([[2], [3, 23]])
    with pytest.raises(UserError, match="takes no sources"):
        session.generate([[2]], sources=[[3]])
    with pytest.raises(UserError, match="stop string 'x' needs text"):
        session.generate([[2]], limits=Limits(stop=("x",)))
    other = Session(translator())
    with pytest.raises(UserError, match="needs a source"):
        other.generate([[2]])
    with pytest.raises(UserError, match="2 sources do not match 1 prompts"):
        other.generate([[2]], sources=[[3], [4]])
    with pytest.raises(UserError, match="source has 0 tokens"):
        other.generate([[2]], sources=[[]])
    with pytest.raises(UserError, match="source of 41 tokens exceeds the context of 40"):
        other.generate([[2]], sources=[[3] * 41])
    with pytest.raises(UserError, match="rows is 0"):
        Session(language_model(), rows=0)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        Limits(0)
    with pytest.raises(ConfigError, match="empty string"):
        Limits(stop=("",))
    with pytest.raises(ConfigError, match="tuple"):
        Limits(stop="END")  # type: ignore[arg-type]


def test_damaged_weights_are_an_error() -> None:
    model = language_model()
    with torch.no_grad():
        model.embed.table.fill_(math.nan)
    for sampling in (GREEDY, Sampling()):
        with pytest.raises(UserError, match="NaN"):
            Session(model).generate([[2]], sampling)
