"""Make the tables of docs/benchmarks/index.md from benchmarks/results.

python benchmarks/table.py                  # writes between the page's marks
python benchmarks/table.py --check          # exit 1 if the page differs from the results
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from budget import regret
from measure import RESULTS, ROOT
from rows import acting, senses, speeds, texts
from rows.cells import Result, Row, percent

START, END = "<!-- table -->", "<!-- /table -->"
HEADER = ["| what | headway | compared with | machine | file |", "|---|---|---|---|---|"]
UNITS = {"amx": "AMX", "amx_bf16": "AMX", "avx512f": "AVX-512", "avx512": "AVX-512", "vnni": "VNNI", "avx2": "AVX2"}
ORNAMENTS = ("(R)", "(TM)", " Processor", "CPU")  # of names of processors
NOTES = {  # notes of runs in budget.json, in the words of the page
    "before dropout followed the room of a model: it had 0.1; evaluations were of the first pairs, which are short": (
        "dropout 0.1, evaluated on short pairs"
    ),
    "before drawn images were told from others; small programs ran beside it": (
        "no detection of drawings, small programs running"
    ),
    "the form before Qwen3's; small programs ran beside it": "older architecture, small programs running",
    "small programs ran beside it": "small programs running",
    "a program of two threads ran beside it, and beside its judgement": "a program of two threads running",
    "beside programs that left it 160 % of two cores": "other programs running, 1.6 cores free",
    "a third to a half of one core, beside other programs": "other programs running, 0.33 to 0.5 cores free",
    "on one core, while other programs ran on the other": "other programs on the second core",
}
Located = tuple[Path, Result]


def engine_files(row: str) -> Iterator[Located]:
    """This row of the engine from the machines with the best and the worst ratio, if several measured it."""
    paths = sorted((RESULTS / "machines").glob("*.json"))
    machines = [(path, json.loads(path.read_text(encoding="utf-8"))["rows"]) for path in paths]
    measured = [(path, rows[row]) for path, rows in machines if row in rows]
    measured.sort(key=lambda one: margin(one[1]), reverse=True)
    yield from [*measured[:1], *measured[1:][-1:]]


def margin(result: Result) -> float:
    """By how much a row exceeds its lowest target; its speed if it has no target."""
    if result["asked"]:
        return min(target["reached"] / target["asked"] for target in result["asked"])
    medians = [
        each[result["goal"]]["median"] for title, each in result["programs"].items() if title.startswith("headway")
    ]
    return -min(medians) if result["goal"] == "seconds" else max(medians)


def files(name: str) -> Iterator[Located]:
    """The results of this name: of one machine, or of each kind."""
    if name in ENGINE:
        yield from engine_files(name)
        return
    for path in (*RESULTS.glob(f"{name}.json"), *sorted(RESULTS.glob(f"machines/*/{name}.json"))):
        yield path, json.loads(path.read_text(encoding="utf-8"))


def claims() -> Iterator[str]:
    """How many of the claims hold, by their committed verdicts."""
    folder = RESULTS / "claims"
    verdicts = [json.loads(path.read_text(encoding="utf-8"))["verdict"] for path in sorted(folder.glob("*.json"))]
    if verdicts:
        what = f"{len(verdicts)} claims about the history of the field, evaluated by fixed rules"
        yield line((what, f"{verdicts.count('holds')} hold", ""), "1 core", folder)


def minutes() -> Iterator[str]:
    """Scores of generic recipes with `--minutes`, run by run."""
    for path, result in files("budget"):
        for run in result.get("chosen", ()):
            parts = [f"{run['set']}, {run['minutes']:g} min", f"{run['parameters'] / 1e6:.2g}M parameters"]
            parts += ["half a core in use"] if run["beside_half_a_core"] else []
            note: str = run.get("note", "")
            parts += [NOTES.get(note, note)] if note else []
            figure = f"{scored(run['scores'])}; {run['wall_seconds']:,.0f} s"
            row = (", ".join(parts), figure, f"requested: {60 * run['minutes']:,.0f} s")
            yield line(row, f"{cores(run.get('cores', 2))} of {where(run['machine'])}", path)


def regrets() -> Iterator[str]:
    """How much worse the choice of `--minutes` is than the best of a grid of sizes and learning rates."""
    for path, result in files("budget"):
        runs = {(one["set"], one["minutes"], one["processor"]): one for one in result.get("grid", ())}
        for name, minutes, processor in runs:
            cells = [one for one in result["grid"] if one["processor"] == processor]
            one = regret(name, minutes, cells)
            if one is not None:
                score = "{:.1%}" if one["score"] == "accuracy" else "{:.4g}"
                unit = {"loss": "{:+.1%}", "accuracy": "{:+.1f} points"}.get(one["score"], "{:+.1f}")
                width, depth, _ = one["best_size"]
                row = (
                    f"{name}, {minutes:g} min: {one['score'].replace('bleu', 'BLEU')} and gap to the best of a grid",
                    f"{score.format(one['chosen'])}; gap {unit.format(one['regret'])}",
                    f"{score.format(one['best'])}: width {width}, {depth} layers, learning rate {one['best_rate']:g}",
                )
                yield line(row, f"1 core of {plain(processor)}", path)


def demos() -> Iterator[str]:
    """`make demo` on a free machine, and while a program uses half of one core."""
    for path, result in files("budget"):
        for run in result.get("demo", ()):
            busy = ", half a core in use" if run["beside_half_a_core"] else ""
            figure = f"WER {percent(run['wer'])}, PER {percent(run['per'])}; {run['wall_seconds']:.0f} s"
            yield line((f"`make demo`{busy}", figure, ""), f"2 cores of {where(run['machine'])}", path)


def scored(scores: Result) -> str:
    """The usual metric of a kind of task, with its interval."""
    for name, number, unit in (
        ("bleu", "{:.1f}", " BLEU"),
        ("accuracy", "{:.1%}", " accuracy"),
        ("bits_per_byte", "{:.3f}", " bits per byte"),
    ):
        if name in scores:
            edges = [number.format(edge) for edge in scores.get(f"{name}_interval", ())]
            return number.format(scores[name]) + unit + (f" ({edges[0]} to {edges[1]})" if edges else "")
    return f"loss {scores['loss']:.3f}"


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
SUBJECTS: dict[str, dict[str, Callable[[Result], Iterator[Row]]]] = {
    "Texts and translation": {
        "shakespeare": texts.shakespeare,
        "translation-speed": texts.translation_speed,
        "translation-score": texts.translation_score,
        "pronounce-5-minutes": texts.pronounce,
        "pronounce-90-minutes": texts.pronounce,
        "pronounce-published": texts.pronounce,
    },
    "Labelled texts, tagging and embeddings": {
        "understanding-banking77": texts.banking77,
        "understanding-banking77-lora": texts.banking77,
        "masked": texts.masked,
        "pretraining": texts.pretraining,
        "pretraining-command": texts.pretraining_command,
        "few": texts.few,
        "names": texts.names,
        "understanding-embed": texts.embedding,
        "understanding-start": texts.start,
    },
    "Chat": {"dialogues": texts.dialogues, "rewards": texts.rewards, "rewards-mates": texts.mates},
    "Images and captions": {
        "fashion-mnist": senses.fashion,
        "digits": senses.digits,
        "emoji-clip": senses.emoji,
        "scenes": senses.scenes,
        "emoji-caption": senses.emoji_caption,
        "vision-speed": senses.vision_speed,
    },
    "Sounds and speech": {
        "spoken-digits": senses.spoken_digits,
        "spoken-speakers": senses.spoken_speakers,
        "voices": senses.voices,
        "spoken-sequences": senses.spoken_sequences,
        "spoken-prompts": senses.spoken_prompts,
        "transcription": senses.transcription,
    },
    "Time series": {"forecast": senses.forecast},
    "Expected scores": {"scores": texts.scores},
    "Agents, robots and chess": {
        **{
            f"trajectories-{name}": acting.trajectories
            for name in ("cartpole", "pendulum", "double", "hopper", "cheetah")
        },
        "online": acting.online,
        "robotics": acting.robotics,
        "robotics-together": acting.robotics_together,
        "robotics-chunks": acting.robotics_chunks,
        "robotics-heads": acting.robotics_heads,
        **{f"robotics-cameras-{task}": acting.robotics_cameras for task in ("reach", "door-open", "drawer-open")},
        "chess": acting.chess,
    },
    "CPU engine": {
        **dict.fromkeys(ENGINE[:-1], speeds.engine),
        "context": speeds.context,
        "sentences": speeds.sentences,
        "forms": speeds.forms,
        "rounding": speeds.rounding,
        "recurrent": speeds.recurrent,
        "mixers": speeds.mixers,
    },
    "Server": {"serve": speeds.serve},
    "Loading and memory": {
        ENGINE[-1]: speeds.engine,
        "load": texts.loading,
        "prepared": texts.prepared,
        "memory": texts.memory,
        "qlora": texts.qlora,
        "padding": texts.padding,
    },
    "Fuzzing": {"fuzz": texts.fuzz},
}


def plain(processor: str) -> str:
    for ornament in ORNAMENTS:
        processor = processor.replace(ornament, "")
    return processor


def cores(count: int) -> str:
    return f"{count} core{'s' * (count > 1)}"


def where(machine: Result, used: str | None = None) -> str:
    """The processor and its best instruction set, or the one that was `used`."""
    name = plain(machine["processor"])
    if used is not None:
        return f"{name} ({UNITS.get(used, used)})"
    units = [unit for unit in ("amx_bf16", "avx512f", "avx2") if unit in machine["units"]]
    return f"{name} ({UNITS[units[0]]})" if units else name


def line(row: Row, machine: str, path: Path) -> str:
    name = path.relative_to(RESULTS).as_posix() + "/" * path.is_dir()
    title = name.removesuffix(".json").rstrip("/")
    return f"| {' | '.join(row)} | {machine} | [{title}](../../benchmarks/results/{name}) |"


def measured(subject: str) -> Iterator[str]:
    for name, rows in SUBJECTS[subject].items():
        for path, result in files(name):
            for row in rows(result):
                yield line(row, where(result["machine"], result.get("instructions")), path)


def gpus() -> Iterator[str]:
    """The rows of benchmarks/engine.py of each GPU."""
    for path in sorted((RESULTS / "gpus").glob("*.json")):
        for result in json.loads(path.read_text(encoding="utf-8"))["rows"].values():
            for row in speeds.engine(result):
                yield line(row, result["machine"]["gpu"], path)


def table() -> str:
    """One table per subject that has results."""
    tables = {subject: list(measured(subject)) for subject in SUBJECTS if subject != "Fuzzing"}
    tables["GPUs"] = list(gpus())
    tables["Planning by minutes"] = [*minutes(), *regrets(), *demos()]
    tables |= {"Fuzzing": list(measured("Fuzzing")), "History of the field": list(claims())}
    return "\n".join(
        "\n".join([f"## {subject}", "", *HEADER, *lines, ""]) for subject, lines in tables.items() if lines
    )


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    page = ROOT / "docs/benchmarks/index.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n\n{table()}\n{END}{after}"
    if args.check:
        return int(wanted != text)
    page.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
