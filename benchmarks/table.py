"""Make the README's table from benchmarks/results.

python benchmarks/table.py                  # writes between the README's marks
python benchmarks/table.py --check          # exit 1 if the README is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from measure import RESULTS, ROOT

START, END = "<!-- table -->", "<!-- /table -->"
Row = tuple[str, str, str]


def results(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def shakespeare() -> Iterator[Row]:
    found = results("shakespeare")
    if found is None:
        return
    quick, minute, peer = found["quick"], found["minute"], found["transformers"]
    yield (
        "characters of Shakespeare, 0.8M parameters: validation loss from the start of the process",
        f"{quick['loss']['median']:.2f} after {quick['seconds']['median']:.0f} s; "
        f"{minute['loss']['median']:.2f} after {minute['seconds']['median']:.0f} s",
        f"transformers' GPT-2: {peer['last'][1]:.2f} after {peer['last'][0]:.0f} s",
    )


def translation() -> Iterator[Row]:
    speed = results("translation-speed")
    if speed is not None:
        reached = [seconds for seconds in speed["seconds_to_bleu_10.7"] if seconds is not None]
        yield (
            "Multi30k, English to German, 4+4 layers of width 128: training",
            f"{speed['target_tokens_a_second']['median']:,.0f} target tokens a second; "
            f"BLEU 10.7 in {max(reached):.0f} s at most",
            "JoeyNMT 2.3 (AVX2 machine): 1,230; 890 s",
        )
        yield (
            "the same model: translating test_2016, greedy",
            f"{speed['greedy_sentences_a_second']['median']:.0f} sentences a second",
            "JoeyNMT 2.3 (AVX2 machine): 13",
        )
    score = results("translation-score")
    if score is not None:
        test = score["test"]
        minutes = (score["seconds_before_training"] + score["seconds_training"]) / 60
        yield (
            f"Multi30k, test_2016, {score['parameters'] / 1e6:.1f}M parameters, beam 5",
            f"BLEU {test['bleu']:.1f} (lower-cased {test['bleu_lowercase']:.1f}) after {minutes:.0f} minutes",
            "published small models: 41 lower-cased, tokenised",
        )


def pronounce() -> Iterator[Row]:
    for path in sorted(RESULTS.glob("pronounce-*-minutes.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        test = found["test"]
        yield (
            f"English words to phonemes (CMUdict), {found['parameters'] / 1e6:.1f}M parameters",
            f"WER {100 * test['wer']:.1f} %, PER {100 * test['per']:.1f} % in {found['seconds_in_all'] / 60:.1f} min",
            "published transformers, another split: 22.1 %, 5.2 %",
        )


def padding() -> Iterator[Row]:
    found = results("padding")
    if found is not None:
        shares = ", ".join(f"{name} {100 * part['padding']:.1f} %" for name, part in found["padding"].items())
        yield "padding among the tokens computed", shares, ""


def memory() -> Iterator[Row]:
    found = results("memory")
    if found is None:
        return
    whole = found["peaks"]["whole"] / found["peaks"]["none"] - 1
    yield (
        "cross-entropy at 50,000 symbols adds to a step's peak memory",
        f"{100 * found['cross_entropy_adds']:.1f} %",
        f"with all logits: {100 * whole:.0f} %",
    )
    text = found["tokenising"]
    yield (
        f"tokenising {text['text_bytes'] / 1e9:.1f} GB of text",
        f"{text['peak_bytes'] / 1e6:.0f} MB at most, {text['seconds']:.0f} s",
        "",
    )


def table() -> str:
    rows = [row for part in (shakespeare, translation, pronounce, padding, memory) for row in part()]
    named = [found["machine"] for found in map(results, ("shakespeare", "translation-score")) if found]
    lines = ["| what | headway | beside |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    if named:
        first = named[0]
        units = ", ".join(unit for unit in first["units"] if unit.startswith(("amx", "avx2")))
        lines += [
            "",
            f"On {first['cores']} cores of an {first['processor']} ({units}), torch {first['packages']['torch']}.",
        ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n{table()}\n{END}{after}"
    if args.check:
        return int(wanted != text)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
