"""Rows of models of text, and of what all models share."""

from __future__ import annotations

from collections.abc import Iterator

from rows.told import Found, Row, duration


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


def dialogues(found: Found) -> Iterator[Row]:
    starts = {"stories260K": "stories260K (published)", "text": "a text model of headway's own"}
    for name, what in starts.items():
        part = found[name]
        taught, preferred = part["instruct"], part["preference"]
        yield (
            f"50 dialogues from {what}, {taught['processor_seconds']:.0f} s of one core: held-out dialogues of two or "
            "three turns with the right answer at each",
            f"{part['other combinations']['dialogues']} with known questions, {part['other words']['dialogues']} with "
            "questions in other words",
            "",
        )
        yield (
            f"30 pairs from that model, {preferred['processor_seconds']:.0f} s of one core: held-out pairs",
            f"{100 * preferred['scores']['accuracy']:.0f} % preferred rightly; perplexity of the chosen answers times "
            f"{preferred['scores']['perplexity_change']:.3f}, of the dialogues times {part['perplexity']['ratio']:.3f}",
            "",
        )


def few(found: Found) -> Iterator[Row]:
    for row in found["rows"]:
        ours, regression = (f"{100 * row[part]['accuracy']:.1f} %" for part in ("ours", "regression"))
        yield (
            f"{row['set']} from all-MiniLM-L6-v2, {row['each']} texts per intent, {row['minutes']:g} min of one core",
            f"accuracy {ours}",
            f"logistic regression on the same vectors, the best of three penalties: {regression}",
        )


def names(found: Found) -> Iterator[Row]:
    ours, theirs = found["headway"], found["transformers"]
    yield (
        f"names of WNUT17 from all-MiniLM-L6-v2, {ours['core_seconds']:.0f} s of one core",
        f"entity F1 {100 * ours['test']['f1']:.1f} %",
        f"transformers with as many core seconds: {100 * theirs['test']['f1']:.1f} %",
    )


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
    held = found["decoding"]
    yield (
        "decoding with llama-135m in int8: peak memory beyond that of `import torch`",
        f"{held['beyond_torch']:.2f} times weights, keys and values",
        f"`import torch`: {held['importing_torch_bytes'] / 1e6:.0f} MB; weights, keys and values: "
        f"{held['weight_and_cache_bytes'] / 1e6:.0f} MB",
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
