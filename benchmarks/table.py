"""Make the README's table from benchmarks/results.

python benchmarks/table.py                  # writes between the README's marks
python benchmarks/table.py --check          # exit 1 if the README is not what the results say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from measure import RESULTS, ROOT

START, END = "<!-- table -->", "<!-- /table -->"
Found = dict[str, Any]
Row = tuple[str, str, str]
WORN = ("(R)", "(TM)", " Processor", "CPU")  # what names of processors are decorated with


def results(name: str) -> Iterator[Found]:
    """The result of this name, if there is one."""
    path = RESULTS / f"{name}.json"
    if path.exists():
        yield json.loads(path.read_text(encoding="utf-8"))


def shakespeare(found: Found) -> Iterator[Row]:
    quick, minute, peer = found["quick"], found["minute"], found["transformers"]
    yield (
        "characters of Shakespeare, 0.8M parameters: validation loss from the start of the process",
        f"{quick['loss']['median']:.2f} after {quick['seconds']['median']:.0f} s; "
        f"{minute['loss']['median']:.2f} after {minute['seconds']['median']:.0f} s",
        f"transformers' GPT-2: {peer['last'][1]:.2f} after {peer['last'][0]:.0f} s",
    )


def translation_speed(found: Found) -> Iterator[Row]:
    reached = [seconds for seconds in found["seconds_to_bleu_10.7"] if seconds is not None]
    yield (
        "Multi30k, English to German, 4+4 layers of width 128: training",
        f"{found['target_tokens_a_second']['median']:,.0f} target tokens a second; "
        f"BLEU 10.7 in {max(reached):.0f} s at most",
        "JoeyNMT 2.3 (AVX2 machine): 1,230; 890 s",
    )
    yield (
        "the same model: translating test_2016, greedy",
        f"{found['greedy_sentences_a_second']['median']:.0f} sentences a second",
        "JoeyNMT 2.3 (AVX2 machine): 13",
    )


def translation_score(found: Found) -> Iterator[Row]:
    test = found["test"]
    yield (
        f"Multi30k, test_2016, {found['parameters'] / 1e6:.1f}M parameters, beam 5",
        f"BLEU {test['bleu']:.1f} (lower-cased {test['bleu_lowercase']:.1f}) after {duration(found)}",
        "published small models: 41 lower-cased, tokenised",
    )


def pronounce(found: Found) -> Iterator[Row]:
    test = found["test"]
    yield (
        f"English words to phonemes (CMUdict), {found['parameters'] / 1e6:.1f}M parameters",
        f"WER {100 * test['wer']:.1f} %, PER {100 * test['per']:.1f} % in {duration(found)}",
        "published transformers, another split: 22.1 %, 5.2 %",
    )


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
        "the same of a speaker who is not trained on, mean of six",
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


def duration(found: Found) -> str:
    """The minutes of a run; of one thread, the minutes of its core."""
    if found.get("threads") == 1:
        return f"{found['core_seconds'] / 60:.0f} minutes of one core"
    seconds = found.get("seconds_in_all") or found["seconds_before_training"] + found["seconds_training"]
    return f"{seconds / 60:.1f} minutes"


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


def padding(found: Found) -> Iterator[Row]:
    shares = ", ".join(f"{name} {100 * part['padding']:.1f} %" for name, part in found["padding"].items())
    yield "padding among the tokens computed", shares, ""


def memory(found: Found) -> Iterator[Row]:
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


def banking77(found: Found) -> Iterator[Row]:
    how = f"LoRA of rank {found['lora']}" if found["lora"] else "full"
    yield (
        f"banking77 from all-MiniLM-L6-v2, {how} fine-tuning",
        f"accuracy {100 * found['test']['accuracy']:.1f} % in {found['core_seconds'] / 60:.0f} core-minutes",
        "",
    )


def embedding(found: Found) -> Iterator[Row]:
    yield f"embedding {found['sentences']:,} sentences of mixed length by all-MiniLM-L6-v2", *beside(found)


def start(found: Found) -> Iterator[Row]:
    yield "from the start of a process to one embedded line", *beside(found)


def beside(found: Found) -> tuple[str, str]:
    times = found["wall_seconds"]
    return f"{times['headway']['median']:.2f} s", f"transformers: {times['transformers']['median']:.2f} s"


def masked(found: Found) -> Iterator[Row]:
    for part, what in (("few", "10 questions an intent"), ("all", "all questions")):
        if part in found:
            ours, scratch = (found[part][begin]["test_accuracy"]["median"] for begin in ("pretrained", "scratch"))
            yield (
                f"a BERT of 4 layers and width 256, pre-trained for 20 minutes, on banking77 ({what})",
                f"accuracy {100 * ours:.1f} %",
                f"from scratch: {100 * scratch:.1f} %",
            )


def loading(found: Found) -> Iterator[Row]:
    for target in ("float32", "float16"):
        ours, theirs = (found[target][program] for program in ("headway", "transformers"))
        yield (
            f"loading {found['model']} from fp16 shards as {target}",
            f"{ours['seconds']['median']:.1f} s, {ours['peak_over_model']['median']:.2f} times the model in memory",
            f"transformers: {theirs['seconds']['median']:.1f} s, {theirs['peak_over_model']['median']:.2f} times",
        )


def fuzz(found: Found) -> Iterator[Row]:
    files = sum(reader["files"] for reader in found["readers"].values())
    yield f"{files:,} damaged files into {len(found['readers'])} readers", f"{found['failures']} failures", ""


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


def recurrent(found: Found) -> Iterator[Row]:
    for kind, theirs in (("lstm", "nn.LSTM"), ("gru", "nn.GRU")):
        yield f"a training step of {kind}, width 256, 256 tokens", f"{found[kind]['ratio']:.2f} times {theirs}'s", ""


def mixers(found: Found) -> Iterator[Row]:
    lengths = found["faster_than_attention_from"].items()
    told = ", ".join(f"{name} from {length:,} tokens on" if length else f"{name} at none" for name, length in lengths)
    yield "training faster than causal attention, lengths 128 to 8,192", told, ""


def engine(found: Found) -> Iterator[Row]:
    goal, programs = found["goal"], found["programs"]
    speeds = {title: rounded(each[goal]["median"]) for title, each in programs.items()}
    ours = ", ".join(f"{title.split()[-1]} {speed}" for title, speed in speeds.items() if title.startswith("headway "))
    theirs = ", ".join(f"{title} {speed}" for title, speed in speeds.items() if not title.startswith("headway "))
    yield f"{ENGINE[found['kind']].format(**found)}, {found['shape']}: {goal.replace('_', ' ')}", ours, theirs


def rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


ENGINE = {
    "decode": "decoding, {rows} at once",
    "prefill": "reading a prompt of 512",
    "translate": "translating by beam 4, {rows} sentences at once",
    "train": "training, batches of {rows} rows",
    "load": "loading",
}


def context(found: Found) -> Iterator[Row]:
    """Of the caches, that which suits the weights: both fp32, or both int8."""
    told = []
    for form, caches in found["weights"].items():
        near, far = (caches[form][position]["tokens_a_second"]["median"] for position in ("128", "8192"))
        size = caches[form]["8192"]["cache_bytes"]
        told.append(f"{form} {near:.0f} and {far:.0f}, with {size / 1e6:.0f} MB of keys and values")
    yield (
        f"decoding with {found['shape']} at positions 128 and 8,192, tokens a second, weights and cache alike",
        "; ".join(told),
        "",
    )


def forms(found: Found) -> Iterator[Row]:
    for rows in (1, 128):
        speeds = {
            name: each[f"int8, rows {rows}"]["gigaoperations_a_second"]
            for name, each in found["forms"].items()
            if "skipped" not in each
        }
        told = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
        yield f"int8 products of {rows} row{'s' * (rows > 1)}, one thread: 10^9 operations a second", told, ""


def rounding(found: Found) -> Iterator[Row]:
    for model in found["models"]:
        names = {"fp32": model.get("fp32"), **{form: model[form]["both"] for form in ("int8", "int4")}}
        if "sentences" in model:
            ours = ", ".join(f"{name} {part['bleu']['bleu']:.1f}" for name, part in names.items())
            yield f"BLEU of {model['model']} on validation, greedy", ours, ""
        elif "questions" in model:
            ours = ", ".join(f"{name} {part['cosine']:.4f}" for name, part in names.items() if part)
            yield f"cosine of {model['model']}'s vectors to those of fp32", ours, ""
        else:
            ours = ", ".join(f"{name} {part['perplexity']:.3f}" for name, part in names.items())
            yield f"perplexity of {model['model']}", ours, ""


def claims() -> Iterator[str]:
    """How many of the claims hold, by their committed verdicts."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / "claims").glob("*.json"))]
    if found:
        holding = sum(claim["verdict"] == "holds" for claim in found)
        yield f"| claims of the history, by fixed rules | {holding} of {len(found)} hold here |  | one core |"


PARTS: dict[str, Callable[[Found], Iterator[Row]]] = {
    "shakespeare": shakespeare,
    "translation-speed": translation_speed,
    "translation-score": translation_score,
    "pronounce-5-minutes": pronounce,
    "pronounce-45-minutes": pronounce,
    "understanding-banking77": banking77,
    "understanding-banking77-lora": banking77,
    "masked": masked,
    "emoji-clip": emoji,
    "understanding-embed": embedding,
    "understanding-start": start,
    "fashion-mnist": fashion,
    "digits": digits,
    "vision-speed": vision_speed,
    "spoken-digits": spoken_digits,
    "spoken-speakers": spoken_speakers,
    "spoken-sequences": spoken_sequences,
    "spoken-prompts": spoken_prompts,
    "load": loading,
    "fuzz": fuzz,
    "scenes": scenes,
    "emoji-caption": emoji_caption,
    "padding": padding,
    "memory": memory,
    **{
        f"engine-{name}": engine
        for name in (
            "decode-135m",
            "decode-135m-8",
            "decode-1.1b",
            "prefill-135m",
            "translate",
            "translate-cache",
            "train-10m",
            "train-30m",
            "train-1m",
            "load-135m",
        )
    },
    "forms": forms,
    "context": context,
    "rounding": rounding,
    "transcription": transcription,
    "recurrent": recurrent,
    "mixers": mixers,
}


def where(machine: Found) -> str:
    name = machine["processor"]
    for worn in WORN:
        name = name.replace(worn, "")
    units = [unit for unit in ("amx_bf16", "avx512f", "avx2") if unit in machine["units"]]
    return f"{name} ({units[0].partition('_')[0]})" if units else name


def table() -> str:
    lines = ["| what | headway | beside | 2 cores of |", "|---|---|---|---|"]
    for name, rows in PARTS.items():
        for found in results(name):
            lines += [f"| {' | '.join(row)} | {where(found['machine'])} |" for row in rows(found)]
    return "\n".join([*lines, *claims()])


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
