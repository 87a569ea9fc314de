"""Rows of images and sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from rows.cells import Result, Row, core_minutes, duration, millions, percent, rounded


def seeds(rows: Sequence[Result]) -> str:
    return f"medians of {len(rows)} seeds" if len(rows) > 1 else "one seed"


def emoji(result: Result) -> Iterator[Row]:
    rows, first = result["rows"], result["rows"][0]
    rates = {
        kind: ", ".join(percent(median(row["test"][f"{kind}_at_{k}"] for row in rows)) for k in (1, 5))
        for kind in ("recall", "neighbour", "chance")
    }
    found = [row["test"]["recall_at_1"] for row in rows]
    yield (
        f"{first['test']['samples']} held-out emoji, names in five languages by image, {millions(first)}: recall@1, "
        f"recall@5 ({seeds(rows)})",
        f"{rates['recall']} (recall@1 {percent(min(found))} to {percent(max(found))}); "
        f"{first['core_seconds']:.0f} core-seconds",
        f"nearest image by pixels: {rates['neighbour']}; chance: {rates['chance']}",
    )


def spoken_digits(result: Result) -> Iterator[Row]:
    accuracy = percent(result["scores"]["accuracy"])
    what = f"spoken digits (FSDD, takes 0 to 4), {millions(result)}: accuracy"
    yield what, f"{accuracy}; {core_minutes(result)}", ""


def spoken_speakers(result: Result) -> Iterator[Row]:
    rates = result["accuracy"]
    yield (
        f"spoken digits of a held-out speaker, mean over {len(result['by_speaker'])} of six speakers: accuracy",
        f"{percent(rates['mean'])} ({percent(rates['least'])} to {percent(rates['greatest'])})",
        "",
    )


def voices(result: Result) -> Iterator[Row]:
    rates = result["accuracy"]
    yield (
        f"the same, a head on the frozen encoder of Whisper tiny.en, mean over {len(result['speakers'])} speakers",
        f"{percent(rates['mean'])} ({percent(rates['least'])} to {percent(rates['greatest'])})",
        "",
    )


def spoken_sequences(result: Result) -> Iterator[Row]:
    scores = result["scores"]
    yield (
        f"2 to 5 spoken digits with timestamps, {millions(result)}, from scratch: WER, mean error of timestamps",
        f"{percent(scores['wer'])}, {scores['boundary_error_ms']:.0f} ms; {core_minutes(result)}",
        "",
    )


def spoken_prompts(result: Result) -> Iterator[Row]:
    yield (
        "Asterisk's voice prompts, Whisper tiny.en fine-tuned: WER",
        f"{percent(result['scores']['wer'])}; {core_minutes(result)}",
        f"not fine-tuned: {percent(result['before']['wer'])}",
    )


def scenes(result: Result) -> Iterator[Row]:
    first = result["rows"][0]
    what = f"captions of drawn scenes, {millions(first)}: exact matches"
    known, novel = result["exact_match"], result["exact_match_novel"]
    yield f"{what} ({seeds(result['rows'])})", f"{percent(known['median'])}; {duration(first)} each", ""
    rates = f"{percent(novel['median'])} ({percent(novel['min'])} to {percent(novel['max'])})"
    yield f"{what}, pairs of colour and shape not in training", rates, ""


def emoji_caption(result: Result) -> Iterator[Row]:
    (row,) = result["rows"]
    test = row["test"]
    yield (
        f"names of {test['samples']} held-out emoji, {millions(row)}, from scratch: exact matches, chrF",
        f"{percent(test['exact_match'])}, {test['chrf']:.1f}; {duration(row)}",
        "",
    )


def fashion(result: Result) -> Iterator[Row]:
    accuracy = percent(result["test"]["accuracy"])
    yield f"Fashion-MNIST, {millions(result)}: test accuracy", f"{accuracy}; {duration(result)}", ""


def digits(result: Result) -> Iterator[Row]:
    slowest = result["seconds_a_fold"]["max"]
    accuracy = percent(result["accuracy"])
    yield "digits of scikit-learn, five folds: accuracy, slowest fold", f"{accuracy}; {slowest:.0f} s", ""


def vision_speed(result: Result) -> Iterator[Row]:
    names = {"vit-ti16": "vit-ti16 at 224 x 224", "fashion": "a ViT of 6 layers and width 128 at 28 x 28"}
    for shape, precisions in result["shapes"].items():
        for key, what in (("training_images_a_second", "training"), ("images_a_second", "inference")):
            speeds = {
                program: ", ".join(
                    f"{precision} {rounded(programs[program][key]['median'])}"
                    for precision, programs in precisions.items()
                )
                for program in ("headway", "transformers")
            }
            yield f"{what}, {names[shape]}", f"{speeds['headway']} images/s", f"transformers {speeds['transformers']}"


def transcription(result: Result) -> Iterator[Row]:
    """The dtypes of headway, and the programs it is compared with."""
    programs = result["programs"]
    ours = {name.removeprefix("headway "): part for name, part in programs.items() if name.startswith("headway")}
    peers = {name: part for name, part in programs.items() if not name.startswith("headway")}
    ours = {name.replace(", cache ", " with KV cache "): part for name, part in ours.items()}

    def cell(parts: Result, value: Callable[[Result], str]) -> str:
        return ", ".join(f"{name} {value(part)}" for name, part in parts.items())

    seconds = result["sound_seconds"]
    for what, value in (
        (f"transcribing {seconds['eleven']} s of speech", lambda part: f"{part['seconds']['median']:.2f} s"),
        ("WER of ten utterances", lambda part: percent(part["wer"])),
        (f"WER of {seconds['joined']:.0f} s of joined utterances", lambda part: percent(part["joined_wer"])),
    ):
        name = f"Whisper tiny.en, beam {result['beam']}, {result['threads']} threads: {what}"
        yield name, cell(ours, value), cell(peers, value)


def forecast(result: Result) -> Iterator[Row]:
    for name, part in result["sets"].items():
        yield (
            f"{name}, model trained for {part['minutes']:g} min: MASE",
            f"{part['model']['mase']['median']:.2f}",
            f"exponential smoothing {part['smoothing']['mase']:.2f}, "
            f"seasonal naive {part['seasonal_naive']['mase']:.2f}",
        )
