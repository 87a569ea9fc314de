"""Short stories from a grammar, for small language models: the words are few, but who, where and what must stay the
same from the first sentence to the last.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NUM_STORIES = 12_000
_SEED = 2017

_NAMES = (
    *((name, "he", "him", "his") for name in ("Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Jack", "Otto")),
    *((name, "she", "her", "her") for name in ("Anna", "Lily", "Mia", "Rosa", "Ella", "Nora", "Ida", "Zoe")),
)
_ANIMALS = ("fox", "bear", "mouse", "rabbit", "cat", "dog", "duck", "frog", "hen", "lamb", "mole", "pony")
_TRAITS = ("little", "brave", "shy", "clever", "lazy", "kind", "sleepy", "curious", "gentle", "proud")
_HOMES = (
    "in a green forest",
    "on a small farm",
    "by a wide river",
    "under an old oak",
    "near the sea",
    "on a high hill",
)
_PLACES = ("the pond", "the bridge", "the garden", "the mill", "the cave", "the field", "the market", "the well")
_THINGS = ("a red ball", "a blue kite", "a silver bell", "a wooden boat", "a warm hat", "a little drum", "a golden key")
_FOODS = ("bread", "honey", "cheese", "soup", "berries", "apples", "cake", "nuts")
_TIMES = ("One day", "One morning", "In spring", "On a cold evening", "After the rain", "The next day")
_FEARS = ("the dark", "the thunder", "deep water", "the wind", "high places")

_OPENING = """
Once upon a time there was a {trait} {animal} named {name}. {He} lived {home}.
| There was a {trait} {animal} who lived {home}. {His} name was {name}.
| {name} was a {trait} {animal} and lived {home}.
"""
# Plots: one of the alternatives of each sentence is used; an alternative starts with a bar.
_PLOTS = """
{name} had {thing}. {He} took it everywhere.
| {name} loved {thing} more than anything else.
{time} {he} went to {place} and lost {the_thing}.
| {time} {the_thing} was gone. {name} had left it at {place}.
{name} sat down and cried.
| {name} looked everywhere, but {he} did not find it.
{friend} the {animal2} came by and asked, "Why are you sad?"
| Then {name} met {friend}, a {trait2} {animal2}.
"I lost {thing}," said {name}. "I will help you," said {friend}.
| {friend} said, "Let us look together."
They went back to {place} and found {the_thing}.
| {friend} found {the_thing} at {place}.
{name} was happy and thanked {friend}.
| {name} gave {friend} some {food} to say thank you.

{time} {name} made {food} and carried it to {place}.
| {time} {name} had a basket full of {food}.
At {place} {he} met {friend}, a {trait2} {animal2}.
| A {animal2} named {friend} sat at {place}.
{friend} was very hungry.
| "I have not eaten all day," said {friend}.
{name} gave {friend2} half of the {food}.
| "Take some of my {food}," said {name}.
Later {name} fell into a hole and could not get out.
| On the way home {name} hurt {his} foot.
{friend} heard {him} and came to help.
| {friend} came and carried {him} home.
"You shared your {food} with me," said {friend}.
| From that day on {name} and {friend} were friends.

{name} was afraid of {fear}.
| Only one thing scared {name}: {fear}.
{time} {his} friend {friend} got lost at {place}.
| {time} {friend} the {animal2} called for help from {place}.
{name} was scared, but {he} went to {place}.
| "I am afraid of {fear}," said {name}, but {he} ran to {place}.
{He} took {friend2} by the hand and brought {friend2} home.
| There {he} found {friend} and showed {friend2} the way.
"You are very brave," said {friend}.
| {friend} thanked {name} and gave {him} {thing}.
{name} was not afraid of {fear} any more.
| After that {name} laughed about {fear}.

{time} {name} and {friend} found {thing} at {place}.
| {time} {name} saw {thing} at {place}. {friend} saw it, too.
"It is mine," said {name}. "No, it is mine," said {friend}.
| Both of them wanted {the_thing}.
They pulled until it broke.
| They fought about it, and it fell into the water.
Now they both were sad.
| {name} looked at {friend}, and {friend} looked at {name}.
"I am sorry," said {name}.
| "Let us share next time," said {friend}.
They mended {the_thing} and played with it together.
| Then they ate {food} together and were friends again.
"""


def write_stories(path: Path) -> None:
    """Write the stories as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for story in generate_stories():
            file.write(json.dumps({"text": story.text}) + "\n")


class Story(NamedTuple):
    """A story, and the number of its plot from 0 to 3: a lost thing, shared food, a fear, a quarrel."""

    text: str
    plot: int


def generate_stories() -> Iterator[Story]:
    """The stories, always the same ones."""
    rng = random.Random(_SEED)
    return (_tell(rng) for _ in range(_NUM_STORIES))


def _tell(rng: random.Random) -> Story:
    (name, he, him, his), friend = rng.sample(_NAMES, 2)
    animal, animal2 = rng.sample(_ANIMALS, 2)
    trait, trait2 = rng.sample(_TRAITS, 2)
    thing = rng.choice(_THINGS)
    fields = {
        **{"name": name, "he": he, "him": him, "his": his, "He": he.capitalize(), "His": his.capitalize()},
        **{"friend": friend[0], "friend2": friend[2], "animal": animal, "animal2": animal2},
        **{"trait": trait, "trait2": trait2, "thing": thing, "the_thing": f"the {thing.removeprefix('a ')}"},
        **{"home": rng.choice(_HOMES), "place": rng.choice(_PLACES), "food": rng.choice(_FOODS)},
        **{"time": rng.choice(_TIMES), "fear": rng.choice(_FEARS)},
    }
    plot, lines = rng.choice(list(enumerate(_PLOTS.strip().split("\n\n"))))
    sentences = f"{_OPENING.strip()}\n{lines}".replace("\n| ", "|").split("\n")
    return Story(" ".join(rng.choice(alternatives.split("|")).format(**fields) for alternatives in sentences), plot)
