"""Rows of images and sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rows.told import Found, Row, duration, rounded


def emoji(found: Found) -> Iterator[Row]:
    test = found["test"]
    rates = {
        kind: (100 * test[f"{kind}_at_1"], 100 * test[f"{kind}_at_5"]) for kind in ("recall", "neighbour", "chance")
    }
    yield (
        f"names of {test['samples']} held-out emoji in five languages, given the image, "
        f"{found['parameters'] / 1e6:.1f}M parameters",
        f"recall@1 {rates['recall'][0]:.1f} %, @5 {rates['recall'][1]:.1f} % after {duration(found)}",
        f"neighbour in pixels: {rates['neighbour'][0]:.1f} %, {rates['neighbour'][1]:.1f} %; "
        f"chance: {rates['chance'][0]:.1f} %, {rates['chance'][1]:.1f} %",
    )


def spoken_digits(found: Found) -> Iterator[Row]:
    yield (
        f"spoken digits (FSDD, takes 0 to 4), {found['parameters'] / 1e6:.1f}M parameters",
        f"accuracy {100 * found['scores']['accuracy']:.1f} % after {spoken_minutes(found)}",
        "",
    )


def spoken_speakers(found: Found) -> Iterator[Row]:
    rates = found["accuracy"]
    yield (
        f"the same of a speaker who is not trained on, mean of {len(found['by_speaker'])} of six",
        f"accuracy {100 * rates['mean']:.1f} % ({100 * rates['least']:.1f} to {100 * rates['greatest']:.1f})",
        "",
    )


def spoken_sequences(found: Found) -> Iterator[Row]:
    scores = found["scores"]
    yield (
        f"2 to 5 spoken digits with their times, {found['parameters'] / 1e6:.1f}M parameters, from scratch",
        f"WER {100 * scores['wer']:.1f} %, {scores['boundary_error_ms']:.0f} ms from the true times in the mean, after "
        f"{spoken_minutes(found)}",
        "",
    )


def spoken_prompts(found: Found) -> Iterator[Row]:
    yield (
        f"Asterisk's prompts by Whisper tiny.en, fine-tuned for {spoken_minutes(found)}",
        f"WER {100 * found['scores']['wer']:.1f} %",
        f"before: {100 * found['before']['wer']:.1f} %",
    )


def spoken_minutes(found: Found) -> str:
    return f"{found['core_seconds'] / 60:.0f} core-minutes"


def scenes(found: Found) -> Iterator[Row]:
    test = found["test"]
    yield (
        f"captions of drawn scenes, {found['parameters'] / 1e6:.1f}M parameters: right to the letter",
        f"{100 * test['exact_match']:.1f} %, with pairs of colour and shape that training never shows "
        f"{100 * test['exact_match_novel']:.1f} %; {duration(found)}",
        "",
    )


def emoji_caption(found: Found) -> Iterator[Row]:
    test = found["test"]
    yield (
        f"names of {test['samples']} held-out emoji, {found['parameters'] / 1e6:.1f}M parameters, from scratch",
        f"right to the letter {100 * test['exact_match']:.1f} %, chrF {test['chrf']:.1f}; {duration(found)}",
        "",
    )


def fashion(found: Found) -> Iterator[Row]:
    yield (
        f"Fashion-MNIST, {found['parameters'] / 1e6:.1f}M parameters: test accuracy",
        f"{100 * found['test']['accuracy']:.1f} % after {duration(found)}",
        "",
    )


def digits(found: Found) -> Iterator[Row]:
    slowest = found["seconds_a_fold"]["max"]
    yield (
        "scikit-learn's digits, five folds: accuracy",
        f"{100 * found['accuracy']:.1f} %, {slowest:.0f} s for the slowest fold",
        "",
    )


def vision_speed(found: Found) -> Iterator[Row]:
    names = {"vit-ti16": "vit-ti16 at 224 x 224", "fashion": "a ViT of 6 layers and width 128 at 28 x 28"}
    for shape, precisions in found["shapes"].items():
        for key, what in (("training_images_a_second", "training"), ("images_a_second", "using")):
            told = {
                program: ", ".join(
                    f"{precision} {rounded(programs[program][key]['median'])}"
                    for precision, programs in precisions.items()
                )
                for program in ("headway", "transformers")
            }
            yield f"{what} {names[shape]}: images a second", told["headway"], f"transformers {told['transformers']}"


def transcription(found: Found) -> Iterator[Row]:
    """Ours under short names, and those of the peers."""
    every = found["programs"]
    ours = {name.removeprefix("headway "): part for name, part in every.items() if name.startswith("headway")}
    peers = {name: part for name, part in every.items() if not name.startswith("headway")}

    def told(parts: Found, value: Callable[[Found], str]) -> str:
        return ", ".join(f"{name} {value(part)}" for name, part in parts.items())

    seconds = found["sound_seconds"]
    for what, value in (
        (f"transcribing {seconds['eleven']} s of speech: seconds", lambda part: f"{part['seconds']['median']:.2f}"),
        ("word error rate of ten utterances, %", lambda part: f"{100 * part['wer']:.1f}"),
        (f"of {seconds['joined']:.0f} s of them in a row, %", lambda part: f"{100 * part['joined_wer']:.1f}"),
    ):
        name = f"Whisper tiny.en, beam {found['beam']}, {found['threads']} threads: {what}"
        yield name, told(ours, value), told(peers, value)
