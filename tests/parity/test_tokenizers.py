"""Published tokenizers from their own files: ids, frames and texts of transformers, sentencepiece and tiktoken."""

from __future__ import annotations

import gzip
import json
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from headway.codecs.published_tokenizers import load_codecs, published_codec
from headway.codecs.tokenizer import TokenizerCodec
from headway.errors import UserError

T = pytest.importorskip("transformers")

TRICKY = [
    "",
    " ",
    "Hello world",
    "  two  spaces, and three   \n\n\ttab\r\n end  ",
    "It's they'RE I'd'VE 12345 3.14 x=y_z",
    "naïve café über İstanbul ﬁne Ⅷ ｆｕｌｌ ～ e\u0301",
    "東京は日本の首都です。한국어 нет العربية हिन्दी",
    "👍🏽 👩‍👩‍👧 \u200b\u00a0\ufeff\x00\x07 ok",
    "▁under ▁▁ score <0x41> <unk",
]
PLAIN = "A man, 3 women and the dog's owner."
OTHER = "Two men are outside."


@pytest.fixture(scope="module")
def lines(data_dir: Path) -> list[str]:
    """English and German sentences."""
    found = []
    for language in ("en", "de"):
        with gzip.open(data_dir / f"translation/multi30k-val.{language}.gz", "rt", encoding="utf-8") as file:
            found += file.read().splitlines()[:150]
    return found


def read(folder: Path, **side: Any) -> TokenizerCodec:
    codec = published_codec(folder, **side)
    assert codec is not None
    return codec


def check(codec: TokenizerCodec, theirs: Any, texts: Sequence[str], pair: bool = True) -> None:
    """Ids without and with what stands around a text, of one text or of two; texts of ids; ids of marks."""
    for text in texts:
        wanted = theirs(text, add_special_tokens=False)["input_ids"]
        assert codec.encode(text) == wanted, text
        assert codec.tokenizer.encode(text).ids == theirs(text)["input_ids"], text
    framed = theirs(PLAIN)["input_ids"]
    assert codec.decode(framed) == theirs.decode(framed, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if pair:
        both, found = theirs(PLAIN, OTHER, return_token_type_ids=True), codec.tokenizer.encode(PLAIN, OTHER)
        assert found.ids == both["input_ids"]
        if "token_type_ids" in theirs.model_input_names:
            assert found.type_ids == both["token_type_ids"]
    for role, ours in (("pad", codec.pad), ("mask", codec.mask), ("eos", codec.eos_id), ("bos", codec.bos_id)):
        wanted = getattr(theirs, f"{role}_token_id", None)
        if wanted is not None:
            assert ours == wanted, role


def write_pairs(folder: Path, texts: list[str], special: Sequence[str], suffix: str = "", tokenizer: str = "") -> None:
    """vocab.json and merges.txt of byte pairs learnt from `texts`, the special symbols first."""
    ending = {"end_of_word_suffix": suffix} if suffix else {}
    trained = Tokenizer(models.BPE(**ending))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if suffix:
        split, bytewise = pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False, use_regex=False)
        trained.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # type: ignore[assignment]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700 if suffix else 450,
        special_tokens=[*special, *(f"{letter}{suffix}" for letter in letters if suffix)],
        initial_alphabet=letters,
        show_progress=False,
        **ending,
    )
    trained.train_from_iterator([text.lower() for text in texts], trainer)
    folder.mkdir()
    trained.model.save(str(folder))
    if tokenizer:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer}))


PAIRS: dict[str, tuple[str, ...]] = {
    "GPT2Tokenizer": ("<|endoftext|>",),
    "RobertaTokenizer": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "BartTokenizer": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "Qwen2Tokenizer": ("<|endoftext|>",),
    "WhisperTokenizer": ("<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_bytes(name: str, lines: list[str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", lines, PAIRS[name], tokenizer=name)
    theirs = getattr(T, name).from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")  # as a tokenizer.json
    for folder in (tmp_path / "a", tmp_path / "b"):
        check(read(folder), theirs, [*TRICKY, *lines[::7]], pair=name != "WhisperTokenizer")


def test_pairs_of_bytes_with_a_space_before_a_text(lines: list[str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", lines, PAIRS["RobertaTokenizer"])
    settings = {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(settings))
    check(read(tmp_path / "a"), T.RobertaTokenizer.from_pretrained(tmp_path / "a"), [*TRICKY[2:], *lines[::7]])


def test_words_of_clip(lines: list[str], tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", lines, ("<|startoftext|>", "<|endoftext|>"), "</w>", "CLIPTokenizer")
    theirs = T.CLIPTokenizer.from_pretrained(tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")  # as a tokenizer.json, whose decoder leaves </w> in the text
    for folder in (tmp_path / "a", tmp_path / "b"):
        check(read(folder), theirs, [*TRICKY, *lines[::7]])


def test_words_of_gpt1(lines: list[str], tmp_path: Path) -> None:
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator([text.lower() for text in lines], trainer)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "OpenAIGPTTokenizer"}')
    trained.model.save(str(tmp_path))
    check(read(tmp_path), T.OpenAIGPTTokenizer.from_pretrained(tmp_path), [*TRICKY, *lines[::7]])


BERT: dict[str, dict[str, Any]] = {
    "plain": {},
    "cased": {"do_lower_case": False},
    "accents": {"do_lower_case": True, "strip_accents": False},
    "characters": {"tokenize_chinese_chars": False},
    "distilbert": {"tokenizer_class": "DistilBertTokenizer"},
}


@pytest.mark.parametrize("case", BERT)
def test_pieces_of_words(case: str, lines: list[str], tmp_path: Path) -> None:
    settings = {"tokenizer_class": "BertTokenizer", **BERT[case]}
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*lines, *(text.lower() for text in lines), TRICKY[5], TRICKY[6]], trainer)
    trained.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = getattr(T, settings["tokenizer_class"]).from_pretrained(tmp_path)
    check(read(tmp_path), theirs, [*TRICKY, *lines[::7]])


Spm = Callable[..., Any]


@pytest.fixture(scope="module")
def spm(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Spm:
    """Trains a sentencepiece model with options and gives its file."""
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    folder, made = tmp_path_factory.mktemp("spm"), {}

    def train(**options: Any) -> Path:
        key = json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = folder / f"{len(made)}.model"
            library.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_prefix=str(made[key].with_suffix("")), minloglevel=2, **options
            )
        return made[key]

    return train


MODELS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram", "vocab_size": 300},
    "unigram, bytes": {"model_type": "unigram", "vocab_size": 560, "byte_fallback": True},
    "bpe": {"model_type": "bpe", "vocab_size": 300},
    "bpe, bytes": {
        "model_type": "bpe",
        "vocab_size": 560,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
    },
    "spaces kept": {"model_type": "bpe", "vocab_size": 300, "remove_extra_whitespaces": False},
    "no prefix": {"model_type": "unigram", "vocab_size": 300, "add_dummy_prefix": False},
    "no prefix, bpe": {"model_type": "bpe", "vocab_size": 560, "byte_fallback": True, "add_dummy_prefix": False},
    "symbols of the user": {"model_type": "unigram", "vocab_size": 300, "user_defined_symbols": ["<sep>", "man"]},
    "symbols of the user, bpe": {"model_type": "bpe", "vocab_size": 300, "user_defined_symbols": ["<sep>", "man"]},
    "case folded": {"model_type": "unigram", "vocab_size": 300, "normalization_rule_name": "nmt_nfkc_cf"},
    "nfkc": {"model_type": "bpe", "vocab_size": 300, "normalization_rule_name": "nfkc"},
}


@pytest.mark.parametrize("case", MODELS)
def test_pieces_of_sentences(case: str, spm: Spm, lines: list[str]) -> None:
    """The ids and the texts of sentencepiece itself."""
    check_pieces(spm(**MODELS[case]), [*TRICKY, *lines[::3]])


def test_a_published_model_of_sentencepiece(data_dir: Path, lines: list[str]) -> None:
    texts = [*TRICKY, *lines, "a</s>", "\u4e00</s>b<s>", "<</s>>"]  # spellings of special tokens are text
    check_pieces(data_dir / "conformance/sentencepiece_test_model.model", texts)


def check_pieces(path: Path, texts: Sequence[str]) -> None:
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    theirs, codec = library.SentencePieceProcessor(model_file=str(path)), read(path)
    assert codec.vocab_size == theirs.vocab_size()
    for text in texts:
        wanted = theirs.encode(text)
        assert codec.encode(text) == wanted, text
        shown = theirs.decode([symbol for symbol in wanted if symbol != theirs.unk_id()])
        assert codec.decode(wanted) == shown, text


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # how it is trained, and what tokenizer_config.json says
    "T5Tokenizer": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, {}),
    "T5Tokenizer, few": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, {"extra_ids": 7}),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model", {"unk_id": 0, "bos_id": 1, "eos_id": 2}, {}),
    "DebertaV2Tokenizer": (
        "spm.model",
        {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}
        | {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"},
        {},
    ),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_families_that_number_pieces_anew(case: str, spm: Spm, lines: list[str], tmp_path: Path) -> None:
    file, options, settings = FAMILIES[case]
    name = case.split(",")[0]
    model = spm(model_type="unigram", vocab_size=300, **options)
    (tmp_path / file).write_bytes(model.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **settings}))
    # What transformers makes of rare characters is not what sentencepiece does, to which we are held above.
    theirs = getattr(T, name).from_pretrained(tmp_path)
    # DebertaV2Tokenizer composes characters, where the model's own rules (NFKC) replace more.
    texts = [line for line in lines[::5] if name != "DebertaV2Tokenizer" or unicodedata.is_normalized("NFKC", line)]
    check(read(tmp_path), theirs, [PLAIN, OTHER, *texts])
    if name == "DebertaV2Tokenizer":
        assert read(tmp_path).token_id("[MASK]") == theirs.convert_tokens_to_ids("[MASK]") == 300
    if name == "T5Tokenizer":
        codec = read(tmp_path)
        assert codec.token_id("<extra_id_0>") == theirs.convert_tokens_to_ids("<extra_id_0>") == codec.vocab_size - 1


def test_residues_of_esm(tmp_path: Path) -> None:
    names = "<cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - <null_1> <mask>"
    (tmp_path / "vocab.txt").write_text("\n".join(names.split()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EsmTokenizer"}))
    theirs, codec = T.EsmTokenizer.from_pretrained(tmp_path), read(tmp_path)
    for text in ("MKTAYIAKQR", "mkt MKJJT.A-", "  M K\nT ", ""):
        assert codec.tokenizer.encode(text).ids == theirs(text)["input_ids"], text
        assert codec.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
    assert codec.tokenizer.encode("MK", "TA").ids == theirs("MK", "TA")["input_ids"]
    (tmp_path / "vocab.txt").write_text("L\nA")
    with pytest.raises(UserError, match="has 2 tokens; a protein model has <unk>"):
        read(tmp_path)


def test_languages_of_nllb(spm: Spm, lines: list[str], tmp_path: Path) -> None:
    """A tokenizer.json whose frame begins with a language, and languages that are symbols after all pieces."""
    library = pytest.importorskip("sentencepiece")
    model = library.SentencePieceProcessor(model_file=str(spm(model_type="bpe", vocab_size=300)))
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *(model.id_to_piece(i) for i in range(3, model.vocab_size()))]
    merges = [(left, right) for left in pieces for right in pieces if left + right in pieces]
    theirs = T.NllbTokenizer(
        {piece: i for i, piece in enumerate(pieces)}, merges, src_lang="deu_Latn", tgt_lang="eng_Latn"
    )
    theirs.save_pretrained(tmp_path)
    check(read(tmp_path), theirs, [PLAIN, OTHER, *lines[::5]])
    assert read(tmp_path).tokenizer.encode(PLAIN).tokens[0] == "deu_Latn"


@pytest.mark.parametrize("legacy", [True, False])
def test_llama(legacy: bool, spm: Spm, lines: list[str], tmp_path: Path) -> None:
    options = {"model_type": "bpe", "vocab_size": 560, "byte_fallback": True, "normalization_rule_name": "identity"}
    model = spm(**options, remove_extra_whitespaces=False)
    (tmp_path / "tokenizer.model").write_bytes(model.read_bytes())
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "add_bos_token": True, "add_eos_token": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = T.LlamaTokenizer.from_pretrained(tmp_path)
    # In the old way transformers puts no space before a text that begins with one; sentencepiece does, and so do we.
    texts = [text for text in TRICKY if text.strip() and not (legacy and text.startswith((" ", "▁")))]
    check(read(tmp_path), theirs, [*texts, *lines[::5]], pair=False)


def test_marian(spm: Spm, lines: list[str], tmp_path: Path) -> None:
    """One vocabulary of two models; codes of languages stand before a text."""
    source = spm(model_type="unigram", vocab_size=300, character_coverage=1.0)
    target = spm(model_type="unigram", vocab_size=280, character_coverage=1.0, required_chars="§")
    library = pytest.importorskip("sentencepiece")
    names = ["</s>", "<unk>", ">>deu<<", ">>fra<<"]
    for file in (source, target):
        found = library.SentencePieceProcessor(model_file=str(file))
        names += [found.id_to_piece(i) for i in range(3, found.vocab_size())]
    names = [*dict.fromkeys(names), "<pad>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (tmp_path / "source.spm").write_bytes(source.read_bytes())
    (tmp_path / "target.spm").write_bytes(target.read_bytes())
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like sacremoses, which changes punctuation
        theirs = T.MarianTokenizer.from_pretrained(tmp_path)
    ours, other = read(tmp_path), read(tmp_path, side="target")
    assert [codec.fingerprint() for codec in load_codecs(tmp_path)] == [ours.fingerprint(), other.fingerprint()]
    texts = [PLAIN, OTHER, ">>deu<< " + OTHER, ">>fra<<" + PLAIN, "a § of the other's", "東京", *lines[::5]]
    for text in texts:
        assert ours.tokenizer.encode(text).ids == theirs(text)["input_ids"], text
    for text in lines[::5]:
        wanted = theirs(text_target=text)["input_ids"]
        assert other.tokenizer.encode(text).ids == wanted
        assert other.decode(wanted) == theirs.decode(wanted, skip_special_tokens=True)
    assert (ours.eos_id, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id)


RANKS = {"r50k_base": 50257, "cl100k_base": 100277}


@pytest.mark.parametrize("name", RANKS)
def test_ranks_of_tiktoken(name: str, data_dir: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids, special symbols and texts of tiktoken with the same ranks."""
    library = pytest.importorskip("tiktoken", reason="tiktoken is not installed")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    path = data_dir / f"conformance/{name}.tiktoken"
    ranks = library.load.load_tiktoken_bpe(str(path))
    for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(public, load, lambda *files, **options: ranks)
    theirs, codec = library.Encoding(**getattr(public, name)()), read(path)
    assert codec.vocab_size == theirs.n_vocab == RANKS[name]
    assert {text: codec.token_id(text) for text in theirs.special_tokens_set} == theirs._special_tokens
    for text in [*TRICKY, *lines]:
        wanted = theirs.encode_ordinary(text)
        assert codec.encode(text) == wanted, text
        assert codec.decode(wanted) == text
