"""Fair queueing: each owner gets as much computed as any other that has requests, oldest requests first within an
owner.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable

from headway.engine import Row
from headway.generate.choosing import Chooser
from headway.generate.prompts import Ids
from headway.generate.score import TokenScore
from headway.generate.session import Continuation
from headway.generate.speculation import Lookup, Prudence


class Copy:
    """One sample of a request. Without a row it waits, or follows a sample that processes the same prompt."""

    def __init__(
        self,
        number: int,
        owner: str,
        prompt: Ids,
        said: Continuation,
        chooser: Chooser,
        prompt_top: int | None = None,
        generates: bool = True,
    ) -> None:
        """`prompt_top` is how many of the most probable tokens to report per prompt token; None: the prompt is not
        scored. With `generates` False the sample ends with its prompt.
        """
        self.ticket = 0  # of its request, once submitted
        self.number, self.owner, self.said, self.chooser = number, owner, said, chooser
        self.prompt_top, self.generates = prompt_top, generates
        self.scores: list[TokenScore] = []  # of the prompt's tokens from the second on
        self.guesser, self.prudence = Lookup(prompt), Prudence()
        self.row: Row | None = None
        self.read = 0  # how many of its ids the row has processed
        self.known = len(prompt)  # prompt tokens that were cached each time it started
        self.followers: list[Copy] = []
        self.done = False

    @property
    def age(self) -> tuple[int, int]:
        """Sort key: older samples come first."""
        return self.ticket, self.number

    @property
    def ids(self) -> list[int]:
        """The prompt and the generated tokens."""
        return self.guesser.ids

    @property
    def unread(self) -> int:
        return len(self.ids) - self.read

    @property
    def reads_prompt(self) -> bool:
        return self.row is not None and not self.said.ids

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits after each token of its prompt are needed."""
        return self.prompt_top is not None and not self.said.ids


class FairQueue:
    """The waiting samples, and the tokens computed for each owner that has any active (Sheng et al. 2024, virtual token
    counter).
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Copy]] = {}
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, copy: Copy) -> None:
        """Queue a sample. A new owner starts with the count of the least served one."""
        self._served.setdefault(copy.owner, min(self._served.values(), default=0))
        insort(self._waiting.setdefault(copy.owner, []), copy, key=lambda one: one.age)

    def next(self) -> Copy | None:
        """The sample to start next."""
        return min((copies[0] for copies in self._waiting.values()), key=self._turn, default=None)

    def begin(self, copy: Copy) -> None:
        """Remove a sample that starts."""
        self._waiting[copy.owner].remove(copy)
        self._tidy()

    def drop(self, tickets: Collection[int]) -> None:
        """Remove requests."""
        for copies in self._waiting.values():
            copies[:] = [copy for copy in copies if copy.ticket not in tickets]
        self._tidy()

    def charge(self, owner: str, symbols: int) -> None:
        """Count tokens computed for an owner."""
        self._served[owner] += symbols

    def ordered(self, copies: Iterable[Copy]) -> list[Copy]:
        """Samples by how little their owners were served."""
        return sorted(copies, key=self._turn)

    def forget(self, present: Collection[str]) -> None:
        """Drop the counts of owners that have nothing waiting and are not in `present`."""
        self._served = {o: n for o, n in self._served.items() if o in present or o in self._waiting}

    def _turn(self, copy: Copy) -> tuple[int, tuple[int, int]]:
        return self._served[copy.owner], copy.age

    def _tidy(self) -> None:
        self._waiting = {owner: copies for owner, copies in self._waiting.items() if copies}
