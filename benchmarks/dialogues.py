"""50 dialogues and 30 pairs, one minute each on one core, as a user would by the command line.

    python benchmarks/dialogues.py                 # about 8 core-minutes; --core 1 pins all of it to that core
    python benchmarks/dialogues.py --times 3       # on a machine that is busy with other things

The dialogues are a bicycle shop's: 8 subjects, each with four ways to ask and one answer, in dialogues of two or three
turns. Both starts that a user has are tried: stories260K, which is published, and a `text` model that headway trains on
a play for two minutes. Four dialogues of other combinations are asked, and four whose questions are in no dialogue
("other words"): an answer counts if it is the shop's own sentence for this subject, a dialogue if all its answers do,
each after the model's own earlier ones. Then 30 pairs are learned: the shop's answer is better than a curt one, than
half a sentence, and than that to another subject. 20 pairs with other questions are held out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import headway as hw
from measure import data_folder, write

SUBJECTS = {
    "puncture": (
        [
            "I have a flat tyre.", "My tyre is flat, can you help?",
            "Can you mend a flat tyre?", "There is a hole in my tyre.",
        ],
        "We mend a flat tyre in twenty minutes for eight euros.",
        "A nail went into my tyre.",
    ),
    "brakes": (
        ["My brakes are loud.", "The brakes do not work well.", "Can you check my brakes?", "I need new brakes."],
        "Bring it in before noon and the brakes are ready in the evening.",
        "Something is wrong with the brakes.",
    ),
    "rent": (
        [
            "Can I rent a bike?", "What does it cost to rent a bike?",
            "I want to rent two bikes.", "Do you rent out bikes?",
        ],
        "A rented bike costs twelve euros a day, with a helmet and a lock.",
        "We would like to rent bikes for a day.",
    ),
    "hours": (
        ["When are you open?", "Are you open today?", "How long are you open?", "Until when are you open?"],
        "The shop is open from ten to seven, but never on Sunday.",
        "Is the shop open now?",
    ),
    "light": (
        ["My light is broken.", "I need a lamp for my bike.", "Do you sell lights?", "Which light is the best one?"],
        "Take the small white lamp, it shines for nine hours.",
        "I am looking for a light.",
    ),
    "child": (
        [
            "I need a bike for my son.", "Do you have a bike for a child?",
            "My daughter needs her first bike.", "What bike can a small child ride?",
        ],
        "For a child we have red bikes in three sizes, come and try one.",
        "Do you sell bikes for a little child?",
    ),
    "old": (
        [
            "Do you buy old bikes?", "I want to sell my old bike.",
            "Can I give you my old bike?", "What do you pay for an old bike?",
        ],
        "We take old bikes and pay up to fifty euros in cash.",
        "My old bike is still good, do you want it?",
    ),
    "chain": (
        [
            "My chain fell off.", "The chain is full of rust.",
            "How do I clean the chain?", "Which oil do I use for the chain?",
        ],
        "Wipe the chain with a dry cloth and use two drops of our oil.",
        "How do I care for my chain?",
    ),
}  # fmt: skip
GREETINGS, LINKS = ("", "Hello. ", "Hi! ", "Good day. "), ("", "Thanks. ", "All right. ", "I see. ")
CURT = ("No.", "I do not know.", "Ask somebody else.", "Look for it yourself.", "What do you want?")
DIALOGUES, PAIRS, HELD_OUT, ASKED = 50, 30, 20, 4
MINUTES = {"text": 2.0, "instruct": 1.0, "preference": 1.0}


def dialogue(draw: random.Random, subjects: list[str]) -> list[tuple[str, str, str]]:
    """Subjects with a question and the answer of each."""
    asked = []
    for number, name in enumerate(subjects):
        questions, answer, _ = SUBJECTS[name]
        asked.append((name, draw.choice(LINKS if number else GREETINGS) + draw.choice(questions), answer))
    return asked


def messages(asked: list[tuple[str, str, str]]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for _, question, answer in asked
        for role, text in (("user", question), ("assistant", answer))
    ]


def dialogues() -> tuple[list[list[tuple[str, str, str]]], list[list[tuple[str, str, str]]]]:
    """Those to learn from, and those to ask: all orders of subjects differ."""
    draw, names = random.Random(11), sorted(SUBJECTS)
    orders: list[list[str]] = []
    while len(orders) < DIALOGUES + ASKED:
        order = draw.sample(names, 3 if len(orders) % 3 == 0 else 2)
        if order not in orders:
            orders.append(order)
    found = [dialogue(draw, order) for order in orders]
    return found[:DIALOGUES], found[DIALOGUES:]


def other_words() -> list[list[tuple[str, str, str]]]:
    names = sorted(SUBJECTS)
    random.Random(12).shuffle(names)
    questions = [(name, SUBJECTS[name][2], SUBJECTS[name][1]) for name in names]
    return [questions[2 * number : 2 * number + 2] for number in range(ASKED)]


def pairs() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Pairs to learn from, and held-out ones, of other questions."""
    draw, names = random.Random(13), sorted(SUBJECTS)
    found: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    for side, count in enumerate((PAIRS, HELD_OUT)):
        for number in range(count):
            name = names[number % len(names)]
            questions, answer, other = SUBJECTS[name]
            known = [greeting + question for greeting in GREETINGS for question in questions[:3]]
            new = [greeting + question for greeting in GREETINGS for question in (questions[3], other)]
            words = answer.split()
            worse = (
                draw.choice(CURT),
                " ".join(words[: len(words) // 2]),
                SUBJECTS[draw.choice([each for each in names if each != name])][1],
            )[number % 3]
            found[side].append({"prompt": draw.choice(new if side else known), "chosen": answer, "rejected": worse})
    return found


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def train(recipe: str, data: Path, run: Path, times: float, *given: str) -> dict[str, Any]:
    minutes = ("--minutes", str(times * MINUTES[recipe]), "--threads", "1", "--seed", "1", "--json")
    command = [sys.executable, "-m", "headway", "train", recipe, "--data", str(data), "--run", str(run)]
    command += [*minutes, *given]
    print("headway", *command[3:], file=sys.stderr)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    used = {"minutes": times * MINUTES[recipe], "processor_seconds": round(worked, 1)}
    return used | {key: summary[key] for key in ("steps", "step", "seconds", "elapsed", "best", "scores")}


def asked(run: Path, conversations: list[list[tuple[str, str, str]]]) -> dict[str, Any]:
    """The right answers, the dialogues that are right as a whole, and all that was said."""
    model, right, whole, said = hw.load(run, device="cpu"), 0, 0, []
    for conversation in conversations:
        told: list[dict[str, str]] = []
        good = 0
        for _, question, answer in conversation:
            told.append({"role": "user", "content": question})
            told.append({"role": "assistant", "content": model.chat(told, temperature=0, max_new_tokens=60)})
            good += told[-1]["content"] == answer
        right, whole = right + good, whole + (good == len(conversation))
        said.append([message["content"] for message in told])
    answers = sum(map(len, conversations))
    return {"answers": f"{right} of {answers}", "dialogues": f"{whole} of {len(conversations)}", "said": said}


def perplexity(run: Path, conversations: list[list[tuple[str, str, str]]]) -> float:
    """Of all that the shop says in dialogues, after what was said before."""
    model, nats, count = hw.load(run, device="cpu"), 0.0, 0
    talk = model.talk
    for conversation in conversations:
        chat = talk.template.encode(talk.codec, messages(conversation))
        with torch.inference_mode():
            logs = model.logits([list(chat.ids[:-1])])[0].log_softmax(-1)
        for start, stop in chat.spans:
            nats -= sum(float(logs[place - 1, chat.ids[place]]) for place in range(start, stop))
            count += stop - start
    return math.exp(nats / count)


def measure(start: str, folder: Path, runs: Path, name: str, times: float) -> dict[str, Any]:
    learned, held_out = dialogues()
    data = lines(folder / "dialogues.jsonl", [{"messages": messages(each)} for each in learned])
    run = runs / f"{name}-answers"
    result: dict[str, Any] = {"instruct": train("instruct", data, run, times, "--from", start)}
    result["other combinations"], result["other words"] = asked(run, held_out), asked(run, other_words())
    train_pairs, test_pairs = pairs()
    lines(folder / "pairs" / "train.jsonl", train_pairs)
    lines(folder / "pairs" / "test.jsonl", test_pairs)
    preferred = runs / f"{name}-preferred"
    result["preference"] = train("preference", folder / "pairs", preferred, times, "--from", str(run))
    result["after the preference"] = asked(preferred, held_out)
    before, after = perplexity(run, held_out), perplexity(preferred, held_out)
    result["perplexity"] = {"before": before, "after": after, "ratio": after / before}
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", type=int)
    parser.add_argument("--times", type=float, default=1.0)
    asked_for = parser.parse_args()
    times = asked_for.times
    if asked_for.core is not None:
        os.sched_setaffinity(0, {asked_for.core})
    with tempfile.TemporaryDirectory() as place:
        folder, runs = Path(place), Path(place) / "runs"
        base, play = runs / "text", data_folder() / "lm" / "tinyshakespeare.txt"
        published = str(data_folder() / "weights" / "stories260K.bin")
        result: dict[str, Any] = {
            "stories260K": measure(published, folder, runs, "stories260K", times),
            "text": {"text": train("text", play, base, times)},
        }
        result["text"] |= measure(str(base), folder, runs, "text", times)
    write("dialogues", result)


if __name__ == "__main__":
    main()
