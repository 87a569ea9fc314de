"""Rows of models of text, of loading and memory, and of damaged files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rows.cells import Result, Row, core_minutes, duration, millions, percent


def shakespeare(result: Result) -> Iterator[Row]:
    quick, minute, peer = result["quick"], result["minute"], result["transformers"]
    yield (
        "Shakespeare by characters, 0.8M parameters: validation loss, time from the start of the process",
        f"{quick['loss']['median']:.2f} in {quick['seconds']['median']:.0f} s; "
        f"{minute['loss']['median']:.2f} in {minute['seconds']['median']:.0f} s",
        f"GPT-2 of transformers: {peer['last'][1]:.2f} in {peer['last'][0]:.0f} s",
    )


def translation_speed(result: Result) -> Iterator[Row]:
    """JoeyNMT's figures are from a machine with AVX2."""
    reached = [seconds for seconds in result["seconds_to_bleu_10.7"] if seconds is not None]
    model, peer = "Multi30k, English to German, 4+4 layers of width 128", "JoeyNMT 2.3, on AVX2"
    tokens = result["target_tokens_a_second"]["median"]
    yield f"{model}: training speed", f"{tokens:,.0f} target tokens/s", f"{peer}: 1,230 target tokens/s"
    yield f"{model}: time to BLEU 10.7, slowest run", f"{max(reached):.0f} s", f"{peer}: 890 s"
    sentences = result["greedy_sentences_a_second"]["median"]
    yield f"{model}: greedy translation of test_2016", f"{sentences:.0f} sentences/s", f"{peer}: 13 sentences/s"


def translation_score(result: Result) -> Iterator[Row]:
    test = result["test"]
    yield (
        f"Multi30k, test_2016, {millions(result)}, beam 5",
        f"BLEU {test['bleu']:.1f}, lower-cased {test['bleu_lowercase']:.1f}; {duration(result)}",
        "published small models: BLEU 41, lower-cased and tokenised",
    )


def pronounce(result: Result) -> Iterator[Row]:
    test, is_published = result["test"], result.get("split") == "published with CNTK"
    yield (
        f"English words to phonemes (CMUdict{', published split' if is_published else ''}), {millions(result)}",
        f"WER {percent(test['wer'])}, PER {percent(test['per'])}; {duration(result)}",
        f"published transformers, {'a split of this size' if is_published else 'another split'}: WER 22.1%, PER 5.2%",
    )


def dialogues(result: Result) -> Iterator[Row]:
    starts = {"stories260K": "stories260K", "text": "a `text` model trained by headway"}
    for name, what in starts.items():
        part = result[name]
        dialogues, pairs = part["instruct"], part["preference"]
        known, other = part["other combinations"]["dialogues"], part["other words"]["dialogues"]
        yield (
            f"50 dialogues, from {what}: held-out dialogues with the right answer in every turn",
            f"known questions: {known}; reworded questions: {other}; {dialogues['processor_seconds']:.0f} core-seconds",
            "",
        )
        yield (
            f"then 30 preference pairs ({what}): held-out pairs ranked correctly",
            f"{percent(pairs['scores']['accuracy'], 0)}; {pairs['processor_seconds']:.0f} core-seconds",
            "",
        )
        yield (
            f"change of perplexity by these pairs ({what})",
            f"chosen answers {pairs['scores']['perplexity_change']:.3f} times, "
            f"dialogues {part['perplexity']['ratio']:.3f} times",
            "",
        )


def rewards(result: Result) -> Iterator[Row]:
    what = "sums of two- and three-digit numbers by reward alone"
    return _by_reward(result, what, "correct answers", lambda part: result["supervised"]["pass_at_1"][-1])


def mates(result: Result) -> Iterator[Row]:
    what = "mate in one in random positions of seven pieces by reward alone"
    return _by_reward(result, what, "right moves", lambda part: part["validation"][0]["pass_at_1"])


def _by_reward(result: Result, what: str, unit: str, before: Callable[[Result], float]) -> Iterator[Row]:
    for method, part in result["methods"].items():
        yield (
            f"{what} ({method}): {unit}",
            f"{percent(part['test']['pass_at_1'])}; {part['processor_seconds'] / 60:.0f} core-minutes",
            f"before: {percent(before(part))}",
        )


def few(result: Result) -> Iterator[Row]:
    for row in result["rows"]:
        ours, regression = (percent(row[part]["accuracy"]) for part in ("ours", "regression"))
        yield (
            f"{row['set']} from all-MiniLM-L6-v2, {row['each']} texts per intent: accuracy",
            f"{ours}; {row['minutes']:g} core-minutes",
            f"logistic regression on the same vectors, best of 3 penalties: {regression}",
        )


def names(result: Result) -> Iterator[Row]:
    ours, theirs = result["headway"], result["transformers"]
    yield (
        "names of WNUT17 from all-MiniLM-L6-v2: entity F1",
        f"{percent(ours['test']['f1'])}; {ours['core_seconds']:.0f} core-seconds",
        f"transformers, as many core-seconds: {percent(theirs['test']['f1'])}",
    )


def padding(result: Result) -> Iterator[Row]:
    shares = ", ".join(f"{name} {percent(part['padding'])}" for name, part in result["padding"].items())
    yield "padding in the tokens computed, by recipe", shares, ""


def memory(result: Result) -> Iterator[Row]:
    logits = result["peaks"]["whole"] / result["peaks"]["none"] - 1
    yield (
        "cross-entropy with a vocabulary of 50,000: share added to the peak memory of a training step",
        percent(result["cross_entropy_adds"]),
        f"with all logits in memory: {percent(logits, 0)}",
    )
    text = result["tokenising"]
    yield (
        f"tokenising {text['text_bytes'] / 1e9:.1f} GB of text: peak memory and time",
        f"{text['peak_bytes'] / 1e6:.0f} MB; {text['seconds']:.0f} s",
        "",
    )
    decoding = result["decoding"]
    yield (
        "decoding with llama-135m in int8: peak memory in addition to `import torch`",
        f"{decoding['beyond_torch']:.2f} times weights and KV cache",
        f"weights and KV cache: {decoding['weight_and_cache_bytes'] / 1e6:.0f} MB; "
        f"`import torch`: {decoding['importing_torch_bytes'] / 1e6:.0f} MB",
    )


def qlora(result: Result) -> Iterator[Row]:
    for precision in ("fp32", "bf16"):
        parts = result["large"].get(precision)
        if parts is None:
            continue
        cells = {
            name: f"{part['peak_bytes'] / 1e9:.1f} GB, {part['tokens_per_core_second']:.0f} tokens per core-second"
            for name, part in parts.items()
        }
        quantised = "; ".join(f"{name}: {cell}" for name, cell in cells.items() if name != "fp32")
        what = f"LoRA on frozen weights of 1.1B parameters, 1 x 512 tokens, products in {precision}"
        yield (
            f"{what}: peak memory and speed",
            quantised,
            f"weights in fp32: {cells['fp32']}" if "fp32" in cells else "",
        )
    if "curves" in result:
        curves = result["curves"]
        finals = {name: f"{curves[name]['final']['median']:.3f}" for name in ("fp32", "int8", "int4")}
        yield (
            "LoRA of rank 8 on another text, five seeds: median validation loss",
            f"int8: {finals['int8']}; int4: {finals['int4']}",
            f"weights in fp32: {finals['fp32']}, standard deviation {curves['fp32']['deviation']:.4f}",
        )


def banking77(result: Result) -> Iterator[Row]:
    how = f"LoRA of rank {result['lora']}" if result["lora"] else "full fine-tuning"
    accuracy = percent(result["test"]["accuracy"])
    yield f"banking77 from all-MiniLM-L6-v2, {how}: accuracy", f"{accuracy}; {core_minutes(result)}", ""


def embedding(result: Result) -> Iterator[Row]:
    yield f"embedding {result['sentences']:,} sentences of mixed length with all-MiniLM-L6-v2", *_times(result)


def start(result: Result) -> Iterator[Row]:
    yield "embedding one line, from the start of the process", *_times(result)


def _times(result: Result) -> tuple[str, str]:
    times = result["wall_seconds"]
    return f"{times['headway']['median']:.2f} s", f"transformers: {times['transformers']['median']:.2f} s"


def masked(result: Result) -> Iterator[Row]:
    for part, what in (("few", "10 texts per intent"), ("all", "all texts")):
        if part in result:
            ours, scratch = (
                percent(result[part][start]["test_accuracy"]["median"]) for start in ("pretrained", "scratch")
            )
            yield (
                f"banking77, {what}, BERT of 4 layers and width 256, pre-trained for 20 min: accuracy",
                ours,
                f"not pre-trained: {scratch}",
            )


_PRETRAINING = {
    "banking77": "banking77 after its own questions without labels",
    "banking77-debian": "banking77 after Debian's descriptions and documentation",
    "debian": "sections of Debian's packages after other descriptions",
    "banking77-gpt": "banking77 by a GPT with its auxiliary loss, after its own questions without labels",
    "fashion-mnist": "Fashion-MNIST after its own images without labels",
    "spoken-digits": "spoken digits after other recordings without labels",
}


def pretraining(result: Result) -> Iterator[Row]:
    for case, part in result["cases"].items():
        ours, scratch = part.get("pretrained"), part.get("scratch")
        if ours and scratch:
            minutes = core_minutes(part["pretraining"])
            yield (
                f"{_PRETRAINING[case]} ({minutes}), 10 labels per class: accuracy, "
                f"median of {len(ours['values'])} seeds",
                f"{percent(ours['median'])} ({percent(ours['min'])} to {percent(ours['max'])})",
                f"not pre-trained: {percent(scratch['median'])}",
            )


def pretraining_command(result: Result) -> Iterator[Row]:
    for part in result["cases"].values():
        ours, scratch = part["pretrained"], part["scratch"]
        if ours and scratch:
            yield (
                f"`headway train classification --pretrain`: {_PRETRAINING[part['case']]}, {part['minutes']:g} minutes "
                f"of one core, 10 labels per class: accuracy, median of seeds ({len(ours['values'])})",
                f"{percent(ours['median'])} ({percent(ours['min'])} to {percent(ours['max'])})",
                f"without --pretrain: {percent(scratch['median'])}, with n-grams, too",
            )


def prepared(result: Result) -> Iterator[Row]:
    if part := result.get("texts"):
        kills, same = part["kills"], "the same bytes" if part["same_bytes"] else "other bytes"
        yield (
            f"{part['megabytes']:,} MB of text prepared by 1 process, by 2, and with {kills['processes']} SIGKILLs",
            f"{same}; processor time of 2 against 1: {1 + part['extra_processor_share']:.2f}",
            "",
        )
    if part := result.get("processes"):
        yield (
            f"{part['megabytes']:,} MB of text: speed of 2 processes of one thread against 1, by the clock",
            f"{part['speedup_wall']:.2f} times ({part['two']['wall_seconds']:.0f} s)",
            f"{part['one']['wall_seconds']:.0f} s",
        )
    if part := result.get("storage"):
        same = "the same batches" if part["same_batches"] else "other batches"
        yield (
            f"an epoch of {part['shards']} shards from S3 by 2 hosts, killed, resumed by 3, with failing answers",
            f"{same}; {part['fetched_in_total']} fetches",
            "",
        )
    if part := result.get("start"):
        many, few = part["many"], part["few"]
        yield (
            f"{many['images']:,} prepared images of 32 x 32: processor time to start, memory; a step",
            f"{many['start_processor_seconds']:.1f} s, {many['peak_megabytes']:,.0f} MB; "
            f"{many['milliseconds_per_step']:.1f} ms",
            f"{few['images']:,} images: {few['milliseconds_per_step']:.1f} ms",
        )
    for kind in ("images", "sounds"):
        if part := result.get("files", {}).get(kind):
            same = "the same bytes" if part["same_bytes"] else "other bytes"
            yield (
                f"{part['files']:,} {kind} prepared by 1 process, by 2, and with {part['kills']['processes']} SIGKILLs",
                f"{same}; processor time of 2 against 1: {1 + part['extra_processor_share']:.2f}",
                "",
            )
    if part := result.get("paper"):
        yield (
            "index for 1e12 tokens: size, and processor time to read it",
            f"{part['index_megabytes']} MB, {part['index_seconds']} s",
            "",
        )


def loading(result: Result) -> Iterator[Row]:
    for target in ("float32", "float16"):
        ours, theirs = (
            f"{part['seconds']['median']:.1f} s; {part['peak_over_model']['median']:.2f} times the model"
            for part in (result[target]["headway"], result[target]["transformers"])
        )
        yield (
            f"loading {result['model']} from fp16 shards as {target}: time and peak memory",
            ours,
            f"transformers: {theirs}",
        )


def fuzz(result: Result) -> Iterator[Row]:
    files = sum(reader["files"] for reader in result["readers"].values())
    yield f"{files:,} damaged files, {len(result['readers'])} readers", f"{result['failures']} failures", ""


def scores(result: Result) -> Iterator[Row]:
    for title, part in (("", result["report"]["all"]), (" after 5 minutes", result["report"]["at_5_minutes"])):
        yield (
            f"test scores{title} inside the interval that was predicted from other sets",
            f"{part['inside']} of {part['predicted']} runs of {', '.join(part['recipes'])}",
            "80 % intended",
        )
        if part["with_tool"]:
            yield (
                f"runs{title} that score at least as well as a classical tool",
                f"{part['beat_the_tool']} of {part['with_tool']}; the better one was predicted for "
                f"{part['winner_predicted']} of {part['winner_predictions']}",
                "",
            )
