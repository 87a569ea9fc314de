"""Thinking before an answer: separated from it as tokens arrive, limited to a budget, and free of the answer's rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from headway.codecs.chat_spans import GUARD
from headway.codecs.thinking_format import CHANNEL, CONSTRAIN, MESSAGE, MESSAGE_ENDS, START, ThinkingFormat
from headway.errors import UserError
from headway.generate.sampling import Rule, token_mask
from headway.generate.sequences import ANSWER, BEFORE, THINKING, AnswerReader, partial_match_length

_MAX_HEADER = 200  # characters of a message's header; a longer one is text
_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")


def answer_reader(thinking: ThinkingFormat, state: str) -> AnswerReader:
    """The reader for an answer in this state."""
    return ChannelReader(thinking, state) if thinking.channels else MarkerReader(thinking, state)


def thinking_rule(
    thinking: ThinkingFormat,
    state: str,
    make_rule: Callable[[], Rule] | None,
    budget: int | None,
    stop_ids: Iterable[int],
    vocab_size: int,
    token_texts: Sequence[bytes] = (),
    header: str = "",
) -> Callable[[], Rule] | None:
    """Makes a `ThinkingRule` for each answer that starts in this state; or the rule itself if there is nothing to
    add.
    """
    if state == ANSWER or (make_rule is None and budget is None):
        return make_rule
    stop_mask = token_mask(stop_ids, vocab_size)
    return lambda: ThinkingRule(thinking, state, make_rule, budget, stop_mask, token_texts, header)


def check_budget(budget: int | None, thinking: ThinkingFormat | None) -> int | None:
    """The budget, None if it is -1. UserError for other negative ones, and for a model that does not think."""
    if budget is not None and budget < -1:
        raise UserError(f"thinking_token_budget is {budget}; use a number of tokens, 0 for none, or -1 for no limit")
    if thinking is None and (budget or 0) > 0:
        raise UserError(f"thinking_token_budget is {budget}, but this model does not think; leave it out")
    return None if budget == -1 else budget


def thinking_off(budget: int | None, template: str) -> dict[str, bool]:
    """The variables that turn thinking off in a chat template that has them, for a budget of 0."""
    return {} if budget != 0 else {name: False for name in ("enable_thinking", "thinking") if name in template}


class MarkerReader:
    """Thinking between two markers at the start of an answer. White space around it is dropped."""

    def __init__(self, thinking: ThinkingFormat, state: str) -> None:
        self.state, self.reasoning, self.recipient, self.pending = state, "", "", ""
        self._opening, self._closing = thinking.text_markers
        self._special, self._names = thinking.special_ids, thinking.spelled
        self._expected = {BEFORE: thinking.opening, THINKING: thinking.closing}
        self._label = "" if state == THINKING else thinking.label  # the start of the thinking, until it is read
        self._trims = state == THINKING  # at the start of the thinking, or of the answer after it

    def push(self, text: str, token: int | None = None, last: bool = False) -> str:
        name = self._names.get(-1 if token is None else token, "")
        if name and name == self._expected.get(self.state):
            before, _, after = text.partition(name)
            text = f"{before}{GUARD}{name}{after}"
        self.pending += text
        self.reasoning = ""
        if self.state == BEFORE:
            start = self.pending.lstrip()
            if start.startswith(self._opening):
                self.pending, self.state, self._trims = start[len(self._opening) :], THINKING, True
            elif last or not self._opening.startswith(start) or (token in self._special and not name):
                self.state = ANSWER
        if self._trims:
            self.pending = self.pending.lstrip()
            if self.pending.startswith(self._label):
                self.pending, self._label = self.pending.removeprefix(self._label).lstrip(), ""
            elif last or not self._label.startswith(self.pending):
                self._label = ""
            self._trims = not self.pending or self._label != ""
        if self.state == THINKING and not self._label:
            self._read_thinking(last)
        if self.state != ANSWER:
            return ""
        answer, self.pending = self.pending, ""
        return answer

    def _read_thinking(self, last: bool) -> None:
        before, tag, after = self.pending.partition(self._closing)
        if tag:
            self.reasoning, self.pending, self.state = before.rstrip(), after.lstrip(), ANSWER
            self._trims = not self.pending
            return
        # White space at the end, and the start of a closing marker, are held back.
        tail = 0 if last else partial_match_length(before, self._closing)
        self.reasoning = before if last else before[: len(before) - tail].rstrip()
        self.pending = before[len(self.reasoning) :]


class ChannelReader:
    """Harmony's messages: those on the channel `analysis` are thinking, those to a function are calls, and all others
    are text. Text without a header is an answer.
    """

    def __init__(self, thinking: ThinkingFormat, state: str) -> None:
        self.state, self.reasoning, self.recipient, self.pending = state, "", "", ""
        self._names = thinking.spelled
        self._header: str | None = "" if state == BEFORE else None  # None within a message

    def push(self, text: str, token: int | None = None, last: bool = False) -> str:
        self.reasoning = ""
        name = self._names.get(-1 if token is None else token, "")
        if name == MESSAGE and self._header is not None:
            header, self._header = self._header, None
            recipient = _RECIPIENT.search(header)
            is_thinking = recipient is None and re.search(rf"{re.escape(CHANNEL)}\s*analysis", header) is not None
            self.state = THINKING if is_thinking else ANSWER
            self.recipient = "" if recipient is None else recipient[1]
        elif name in (START, *MESSAGE_ENDS):
            self._header, self.recipient, self.state = "", "", ANSWER
        elif name in (CHANNEL, CONSTRAIN) and self._header is None:  # a header whose start is missing
            self._header, self.recipient = name, ""
        elif self._header is not None:
            self._header += name
        if self._header is not None:
            self._header += text
            text = ""
            if len(self._header) > _MAX_HEADER or (last and CHANNEL not in self._header):
                text, self._header, self.state = self._header, None, ANSWER
        if self.state == THINKING:
            self.reasoning, text = text, ""
        return text


class ThinkingRule:
    """Lets one answer think freely until its end or its budget, and then enforces another rule.

    Before the thinking, the rule allows its opening marker or an answer. When the budget is used up, the closing marker
    is the only next token. The thinking cannot end the answer if another rule follows.
    """

    def __init__(
        self,
        thinking: ThinkingFormat,
        state: str,
        make_rule: Callable[[], Rule] | None,
        budget: int | None,
        stop_mask: np.ndarray,
        token_texts: Sequence[bytes] = (),
        header: str = "",
    ) -> None:
        """`stop_mask` has the bits of the tokens that end an answer, `token_texts` the text of each token. An answer
        after thinking starts with `header`; without thinking, with the part of it after the role.
        """
        self._thinking, self._make_rule, self._budget = thinking, make_rule, budget
        self._rule = None if make_rule is None else make_rule()
        self._stop_mask, self._token_texts = stop_mask, token_texts
        self._reader, self._decoder = answer_reader(thinking, state), thinking.codec.stream()
        self._count = 0  # tokens of the thinking
        self._answering = state == ANSWER
        lead = header if thinking.channels else thinking.separator
        self._lead = thinking.ids(lead) if make_rule is not None else ()
        direct = thinking.ids(header.removeprefix(f"{START}assistant"))
        openings = [thinking.opening, *([f"\n{thinking.opening}"] if thinking.on_new_line else [])]
        self._paths = [*map(thinking.ids, openings), *([direct] if direct else [])]
        self._rule_alive = not direct  # whether the tokens so far may be an answer without thinking
        self._allowed = np.zeros(0, np.int32)
        self._forced: list[int] = []
        if state == THINKING and budget == 0:
            self._force_end()

    def fill(self, mask: np.ndarray) -> None:
        if self._forced:
            mask[:] = 0
            _set_bit(mask, self._forced[0])
        elif self._rule is None:
            mask[:] = -1
        elif self._answering:
            self._rule.fill(mask)
        elif self._reader.state == THINKING:
            mask[:] = -1
            mask &= ~self._stop_mask
            self._forbid_overflow(mask)
        else:
            mask[:] = 0
            if self._rule_alive:
                self._rule.fill(mask)
            self._allowed = mask.copy()
            for path in self._paths:
                _set_bit(mask, path[0])

    def take(self, token: int) -> None:
        if self._answering and not self._forced:
            assert self._rule is not None
            self._rule.take(token)
            return
        state = self._reader.state
        self._reader.push(self._decoder.push(token), token)
        if self._forced:
            self._forced.pop(0)
        elif self._reader.state == THINKING:
            self._count += state == THINKING
            if self._budget is not None and self._count >= self._budget:
                self._force_end()
            elif state != THINKING and self._make_rule is not None:
                self._rule = self._make_rule()  # it may have taken the marker for the start of an answer
        elif state == THINKING:
            self._answering = self._rule is not None
            self._forced = list(self._lead)
        elif self._rule is not None:
            self._take_start(token)

    def _take_start(self, token: int) -> None:
        """Accept a token before it is decided whether the answer starts with thinking."""
        assert self._rule is not None
        self._rule_alive = self._rule_alive and bool(self._allowed[token // 32] >> token % 32 & 1)
        if self._rule_alive:
            self._rule.take(token)
        paths = [path[1:] for path in self._paths if path[0] == token]
        self._paths = [path for path in paths if path]
        self._answering = not self._paths or len(self._paths) < len(paths)

    def _force_end(self) -> None:
        """The next tokens are the closing marker and the start of an answer."""
        self._forced = [*self._thinking.ids(self._thinking.closing), *self._lead]
        self._answering = self._rule is not None

    def _forbid_overflow(self, mask: np.ndarray) -> None:
        """Exclude tokens that end the closing marker and also start an answer, which the rule could not check."""
        closing = self._thinking.text_markers[1]
        if not (length := partial_match_length(self._reader.pending, closing)):
            return
        rest = closing[length:].encode()
        for token, text in enumerate(self._token_texts):
            if text.startswith(rest) and text[len(rest) :].strip():
                mask.view(np.uint32)[token // 32] &= ~np.uint32(1 << token % 32)


def _set_bit(mask: np.ndarray, token: int) -> None:
    mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
