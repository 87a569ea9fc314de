"""Make the table of docs/benchmarks/index.md from benchmarks/results.

python benchmarks/table.py                  # writes between the page's marks
python benchmarks/table.py --check          # exit 1 if the page is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator

from budget import regret
from measure import RESULTS, ROOT
from rows import acting, senses, speeds, texts
from rows.told import Found, Row

START, END = "<!-- table -->", "<!-- /table -->"
CORES = {1: "one core", 2: "two cores"}
WORN = ("(R)", "(TM)", " Processor", "CPU")  # what names of processors are decorated with


ENGINE = (
    "decode-135m",
    "decode-135m-8",
    "decode-135m-32",
    "decode-135m-32-cache",
    "decode-1.1b",
    "prefill-135m",
    "translate",
    "translate-cache",
    "train-10m",
    "train-30m",
    "train-1m",
    "load-135m",
)  # rows of benchmarks/engine.py


def extremes(row: str) -> Iterator[Found]:
    """This row of the engine where it stands best, and where it stands worst, if several measured it."""
    machines = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / "machines").glob("*.json"))]
    found = sorted((one["rows"][row] for one in machines if row in one["rows"]), key=margin, reverse=True)
    yield from [*found[:1], *found[1:][-1:]]


def margin(found: Found) -> float:
    """How far a row lies above the least of what was asked of it; where nothing was, how fast it is."""
    if found["asked"]:
        return min(each["reached"] / each["asked"] for each in found["asked"])
    medians = [
        each[found["goal"]]["median"] for title, each in found["programs"].items() if title.startswith("headway")
    ]
    return -min(medians) if found["goal"] == "seconds" else max(medians)


def results(name: str) -> Iterator[Found]:
    """The results of this name: of one machine, or of each kind."""
    if name in ENGINE:
        yield from extremes(name)
        return
    for path in (*RESULTS.glob(f"{name}.json"), *sorted(RESULTS.glob(f"machines/*/{name}.json"))):
        yield json.loads(path.read_text(encoding="utf-8"))


def claims() -> Iterator[str]:
    """How many of the claims hold, by their committed verdicts."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / "claims").glob("*.json"))]
    if found:
        holding = sum(claim["verdict"] == "holds" for claim in found)
        yield f"| claims of the history, by fixed rules | {holding} of {len(found)} hold here |  | one core |"


def minutes() -> Iterator[str]:
    """What generic recipes made of their minutes, run by run."""
    for found in results("budget"):
        for run in found.get("chosen", ()):
            what, given = run["set"], f"{run['minutes']:g} minutes of {CORES[run.get('cores', 2)]}"
            beside = ", beside half a core" if run["beside_half_a_core"] else ""
            off = run["wall_seconds"] / 60 / run["minutes"] - 1
            size = f"{run['parameters'] / 1e6:.2g}M parameters, {off:+.1%} of the time"
            note = f"; {run['note']}" if "note" in run else ""
            told = (f"`--minutes`, {what}: {given}{beside}{note}", scored(run["scores"]), size, where(run["machine"]))
            yield f"| {' | '.join(told)} |"


def regrets() -> Iterator[str]:
    """How much worse the choice of `--minutes` is than the best of a grid of sizes and rates, at equal minutes."""
    for found in results("budget"):
        asked = {(one["set"], one["minutes"], one["processor"]): one for one in found.get("grid", ())}
        for name, minutes, processor in asked:
            cells = [one for one in found["grid"] if one["processor"] == processor]
            one = regret(name, minutes, cells)
            if one is not None:
                unit = {"loss": "{:+.1%} of the loss", "accuracy": "{:+.1f} points"}.get(one["score"], "{:+.1f}")
                what = f"`--minutes` beside a grid, {name}: {minutes:g} minutes of one core, regret"
                width, depth, _ = one["best_size"]
                best = f"best cell {one['best']:.4g}: {width} wide, {depth} layers, rate {one['best_rate']:g}"
                yield f"| {what} | {unit.format(one['regret'])} ({one['chosen']:.4g}) | {best} | {processor} |"


def demos() -> Iterator[str]:
    """`make demo` alone, and beside a program that takes half of one core."""
    for found in results("budget"):
        for run in found.get("demo", ()):
            beside = ", beside half a core" if run["beside_half_a_core"] else ""
            rates = f"WER {run['wer']:.1%}, PER {run['per']:.1%} in {run['wall_seconds']:.0f} s, the make included"
            yield f"| `make demo`{beside} | {rates} |  | {where(run['machine'])} |"


def scored(scores: Found) -> str:
    """The figure that a kind of task is known by, with its interval."""
    for name, said in (("bleu", "{:.1f} BLEU"), ("accuracy", "{:.1%}"), ("bits_per_byte", "{:.3f} bits a byte")):
        if name in scores:
            edges = [said.format(edge) for edge in scores.get(f"{name}_interval", ())]
            return said.format(scores[name]) + (f" ({edges[0]} to {edges[1]})" if edges else "")
    return f"loss {scores['loss']:.3f}"


PARTS: dict[str, Callable[[Found], Iterator[Row]]] = {
    "shakespeare": texts.shakespeare,
    "translation-speed": texts.translation_speed,
    "translation-score": texts.translation_score,
    "pronounce-5-minutes": texts.pronounce,
    "pronounce-45-minutes": texts.pronounce,
    "understanding-banking77": texts.banking77,
    "understanding-banking77-lora": texts.banking77,
    "masked": texts.masked,
    "few": texts.few,
    "names": texts.names,
    "dialogues": texts.dialogues,
    "emoji-clip": senses.emoji,
    "understanding-embed": texts.embedding,
    "understanding-start": texts.start,
    "fashion-mnist": senses.fashion,
    "digits": senses.digits,
    "vision-speed": senses.vision_speed,
    "spoken-digits": senses.spoken_digits,
    "spoken-speakers": senses.spoken_speakers,
    "spoken-sequences": senses.spoken_sequences,
    "spoken-prompts": senses.spoken_prompts,
    "load": texts.loading,
    "fuzz": texts.fuzz,
    "scenes": senses.scenes,
    "emoji-caption": senses.emoji_caption,
    "chess": acting.chess,
    **{f"trajectories-{name}": acting.trajectories for name in ("cartpole", "pendulum", "double", "hopper", "cheetah")},
    "online": acting.online,
    "robotics": acting.robotics,
    "robotics-together": acting.robotics_together,
    "robotics-chunks": acting.robotics_chunks,
    "robotics-heads": acting.robotics_heads,
    **{f"robotics-cameras-{task}": acting.robotics_cameras for task in ("reach", "door-open", "drawer-open")},
    "padding": texts.padding,
    "memory": texts.memory,
    **dict.fromkeys(ENGINE, speeds.engine),
    "serve": speeds.serve,
    "forms": speeds.forms,
    "context": speeds.context,
    "rounding": speeds.rounding,
    "transcription": senses.transcription,
    "recurrent": speeds.recurrent,
    "mixers": speeds.mixers,
}


def where(machine: Found, used: str | None = None) -> str:
    """The processor, and the best units that it has, or those that were `used` where less of it was."""
    name = machine["processor"]
    for worn in WORN:
        name = name.replace(worn, "")
    if used is not None:
        return f"{name} ({used})"
    units = [unit for unit in ("amx_bf16", "avx512f", "avx2") if unit in machine["units"]]
    return f"{name} ({units[0].partition('_')[0]})" if units else name


def table() -> str:
    lines = ["| what | headway | beside | 2 cores of |", "|---|---|---|---|"]
    for name, rows in PARTS.items():
        for found in results(name):
            lines += [
                f"| {' | '.join(row)} | {where(found['machine'], found.get('instructions'))} |" for row in rows(found)
            ]
    return "\n".join([*lines, *minutes(), *regrets(), *demos(), *claims()])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = ROOT / "docs/benchmarks/index.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n{table()}\n{END}{after}"
    if args.check:
        return int(wanted != text)
    page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
