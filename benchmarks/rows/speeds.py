"""Rows of mixers and of the CPU engine."""

from __future__ import annotations

from collections.abc import Iterator

from rows.told import Found, Row, rounded

ENGINE = {
    "decode": "decoding, {rows} at once",
    "prefill": "reading a prompt of 512",
    "translate": "translating by beam 4, {rows} sentences at once",
    "train": "training, batches of {rows} rows",
    "load": "loading",
}


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
    keeps = found["kind"] in ("decode", "prefill", "translate") and found["cache"] is not None
    cache = f", keys and values in {found['cache']}" if keeps else ""
    yield f"{ENGINE[found['kind']].format(**found)}, {found['shape']}{cache}: {goal.replace('_', ' ')}", ours, theirs


def serve(found: Found) -> Iterator[Row]:
    told = lambda speeds: ", ".join(rounded(each["tokens_per_second"]) for each in speeds.values())  # noqa: E731
    texts = {
        "drawn": "drawn texts after prompts of 128",
        "known": "drawn texts after prompts that were read before",
        "greedy": "greedy texts after prompts of 128",
        "schema": "texts that a JSON schema holds",
    }
    for how, clients in found["clients"].items():
        what = f"`headway serve`, {found['shape']} {found['form']}, {', '.join(clients)} clients, {texts[how]}"
        beside = [f"llama.cpp's server at Q8_0 {told(found['llama.cpp'][how])}"] if how in found["llama.cpp"] else []
        beside.append(f"`bench decode` with as many rows, prompts left out {told(found['alone'])}")
        yield f"{what}: new tokens a second", told(clients), "; ".join(beside)


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
