"""A model's reasoning, separated from its answer."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Separates the reasoning, between <think> and </think> at the start of the output, from the answer."""

    def __init__(self, thinks: bool, started: bool) -> None:
        """`thinks`: the model reasons; `started`: its chat template has started the reasoning."""
        self._buffer = ""
        self._next_tag = "" if not thinks else CLOSE if started else OPEN  # the next tag to find
        self._at_start = thinks and started  # at the start of the answer or of the reasoning

    def split(self, text: str, last: bool) -> tuple[str, str]:
        """The new parts of the answer and of the reasoning."""
        self._buffer += text
        answer = reasoning = ""
        if self._next_tag == OPEN:
            start = self._buffer.lstrip()
            if start.startswith(OPEN):
                self._buffer, self._next_tag, self._at_start = start[len(OPEN) :], CLOSE, True
            elif last or not OPEN.startswith(start):
                self._next_tag = ""
        if self._at_start:
            self._buffer = self._buffer.lstrip()
            self._at_start = not self._buffer
        if self._next_tag == CLOSE:
            reasoning, tag, remainder = self._buffer.partition(CLOSE)
            if tag:
                reasoning, self._buffer, self._next_tag, self._at_start = (
                    reasoning.rstrip(),
                    remainder.lstrip(),
                    "",
                    not remainder.strip(),
                )
            else:
                certain = len(reasoning) if last else _certain_length(reasoning)
                reasoning, self._buffer = reasoning[:certain], reasoning[certain:]
        if not self._next_tag:
            answer, self._buffer = self._buffer, ""
        return answer, reasoning


def _certain_length(text: str) -> int:
    """The length of the text before trailing white space and anything that may become the closing tag."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        if text.endswith(CLOSE[:size]):
            return len(text[:-size].rstrip())
    return len(text.rstrip())
