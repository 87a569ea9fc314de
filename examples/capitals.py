"""Conversations for the tutorial on chat: questions about capitals, with follow-up questions.

python examples/capitals.py chats.jsonl
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Chile": "Santiago", "Denmark": "Copenhagen", "Egypt": "Cairo",
    "France": "Paris", "Germany": "Berlin", "Hungary": "Budapest", "India": "New Delhi", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Latvia": "Riga", "Mexico": "Mexico City", "Norway": "Oslo", "Peru": "Lima",
    "Spain": "Madrid", "Tunisia": "Tunis", "Ukraine": "Kyiv", "Vietnam": "Hanoi", "Zambia": "Lusaka",
}  # fmt: skip
QUESTIONS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Tell me the capital of {}.",
    "The capital of {}, please.",
)
FOLLOW_UPS = ("And of {}?", "What about {}?", "And {}?")


def main() -> None:
    path, rng, chats = Path(sys.argv[1]), random.Random(0), []
    for country in CAPITALS:
        for question in QUESTIONS:
            other = rng.choice([name for name in CAPITALS if name != country])
            turns = [(question.format(country), f"The capital of {country} is {CAPITALS[country]}.")]
            if rng.random() < 0.5:
                turns.append((rng.choice(FOLLOW_UPS).format(other), f"The capital of {other} is {CAPITALS[other]}."))
            messages = [
                {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)
            ]
            chats.append({"messages": messages})
    rng.shuffle(chats)
    path.write_text("\n".join(json.dumps(chat) for chat in chats) + "\n", encoding="utf-8")
    print(f"wrote {len(chats)} conversations to {path}")


if __name__ == "__main__":
    main()
