"""The reasoning of a model, separated from its answer."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class Thoughts:
    """Separates the reasoning, between <think> and </think> at the start of the output, from the answer."""

    def __init__(self, thinks: bool, begun: bool) -> None:
        """`thinks`: the model reasons; `started`: its chat template has started the reasoning."""
        self._held = ""
        self._mark = "" if not thinks else CLOSE if begun else OPEN  # the next tag to find
        self._starts = thinks and begun  # at the start of the answer or of the reasoning

    def split(self, text: str, last: bool) -> tuple[str, str]:
        """The new parts of the answer and of the reasoning."""
        self._held += text
        said = thought = ""
        if self._mark == OPEN:
            start = self._held.lstrip()
            if start.startswith(OPEN):
                self._held, self._mark, self._starts = start[len(OPEN) :], CLOSE, True
            elif last or not OPEN.startswith(start):
                self._mark = ""
        if self._starts:
            self._held = self._held.lstrip()
            self._starts = not self._held
        if self._mark == CLOSE:
            thought, mark, rest = self._held.partition(CLOSE)
            if mark:
                thought, self._held, self._mark, self._starts = thought.rstrip(), rest.lstrip(), "", not rest.strip()
            else:
                certain = len(thought) if last else _certain(thought)
                thought, self._held = thought[:certain], thought[certain:]
        if not self._mark:
            said, self._held = self._held, ""
        return said, thought


def _certain(text: str) -> int:
    """The length of the text before trailing white space and anything that may become the closing tag."""
    for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
        if text.endswith(CLOSE[:size]):
            return len(text[:-size].rstrip())
    return len(text.rstrip())
