"""The process that computes rewards: it runs one function on one answer after another."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from headway.errors import UserError
from headway.io.user_callables import first_line, import_user_callable

_MAX_REWARD = 1e30  # a larger one, or its square, would overflow when it is compared with others


def serve(name: str, seconds: float) -> None:
    """Reply to each line of standard input, JSON of prompt, output and row, with a line: {"reward": number} or
    {"error": text}. The first line reports whether the function could be imported. A process that its parent can no
    longer end is ended by the kernel after twice the `seconds` per answer.
    """
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the function must not read the next answers
    os.dup2(2, 1)  # what it prints must not be taken for a reply

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    try:
        function: Any = import_user_callable(name, "the reward")
    except UserError as error:
        send({"error": str(error)})
        return
    send({"reward": 0})
    for line in requests:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
        try:
            reward = function(*json.loads(line))
            if isinstance(reward, str) or not hasattr(reward, "__float__"):
                send({"error": f"it returns a {type(reward).__name__}, not a number"})
            elif not abs(number := float(reward)) <= _MAX_REWARD:
                send({"error": f"it returns {number}"})
            else:
                send({"reward": number})
        except Exception as error:  # the user's code may raise anything
            send({"error": f"{type(error).__name__}: {first_line(error)}"[:300]})
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
