"""Time a regular expression in a helper process, on repetitions of its own characters."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import product

from tokenizers import Regex, pre_tokenizers

_LENGTHS = (30, 300, 2000)  # characters; exponential patterns already fail on short texts
_MAX_SECONDS = 0.15  # seconds per text; quadratic patterns take a third of this on the longest text


def answer(pattern: str) -> str | None:
    """What is wrong with a pattern; None if nothing is."""
    try:
        search = pre_tokenizers.Split(Regex(pattern), "isolated")
        for text in _test_texts(pattern):
            started = time.thread_time()
            search.pre_tokenize_str(text)
            seconds = time.thread_time() - started
            if seconds > _MAX_SECONDS:
                return f"needs {seconds:.1f} s for a text of {len(text):,} characters"
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in the library is not an Exception
        reason = " ".join(str(error).split())[:120]
        return f"the library cannot search for ({reason})"
    return None


def _test_texts(pattern: str) -> Iterator[str]:
    """Test texts, short ones first."""
    characters = [character for character in dict.fromkeys(pattern) if character.isalnum() or character.isspace()]
    required = "".join(re.findall(r"[\w\s]+", pattern))[:64]
    punctuation = re.sub(r"\w", "", pattern)
    letters = list(dict.fromkeys([*"a 1\n.A'", *characters[:24], *punctuation[:24], "\u00e9", "\u4e2d"]))
    pairs = list(map("".join, product(letters[:10], repeat=2)))
    for length in _LENGTHS:
        units = [*letters, *([] if length == _LENGTHS[-1] else pairs), "The cat, 12 times.\n", "\r\n"]
        for unit in units:
            yield unit * (length // len(unit))
            # The library searches only texts that contain the letters that the pattern requires.
            yield f"{unit * (length // len(unit))}\x00{required}"
            yield f"{required}{unit * (length // len(unit))}\x00{required[:1]}"
