"""Models of several languages against transformers: the ids of their tokenizers, and translations between languages."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from twins import perturb

import headway as hw
from headway.app.cli import main as cli
from headway.codecs.languages import TOKENS_IN_ORDER, language_id
from headway.codecs.published_tokenizers import published_codec
from headway.codecs.tokenizer import TokenizerCodec
from headway.domains.translation.predictors import _Translator, _with_languages
from headway.domains.translation.task import Codecs
from headway.errors import UserError
from headway.formats.usage import Usage
from headway.generate import SearchConfig

T = pytest.importorskip("transformers")
PLAIN, OTHER = "A man, 3 women and the dog's owner.", "Two men are outside."
FLORES = ["ace_Arab", "deu_Latn", "eng_Latn", "zho_Hans", "zho_Hant"]


class Family(NamedTuple):
    """Classes of transformers, the kind of pieces, settings of the tokenizer, and names of English and German."""

    tokenizer: str
    model: str
    pieces: str
    settings: dict[str, Any]
    english: str
    german: str


def listed(first: int) -> dict[str, Any]:
    """As NLLB's files list their tokens, whose ids begin at `first`."""
    names = {**dict(enumerate(["<s>", "<pad>", "</s>", "<unk>"])), **dict(enumerate([*FLORES, "<mask>"], first))}
    tokens = {str(i): {"content": name, "special": True, "normalized": False} for i, name in names.items()}
    return {"additional_special_tokens": FLORES, "added_tokens_decoder": tokens}


def special(name: str) -> dict[str, Any]:
    return {"additional_special_tokens": TOKENS_IN_ORDER[name]}


FAMILIES = {
    "mbart": Family("MBartTokenizer", "MBart", "unigram", {}, "en_XX", "de_DE"),
    "mbart50": Family("MBart50Tokenizer", "MBart", "unigram", {"src_lang": "fr_XX"}, "en_XX", "de_DE"),
    "m2m100": Family("M2M100Tokenizer", "M2M100", "bpe", {"src_lang": "fr", **special("m2m100")}, "en", "de"),
    "wmt21": Family("M2M100Tokenizer", "M2M100", "bpe", {"language_codes": "wmt21", **special("wmt21")}, "en", "de"),
    "nllb": Family("NllbTokenizer", "M2M100", "bpe", listed(301), "eng_Latn", "deu_Latn"),
    "nllb-legacy": Family(
        "NllbTokenizer", "M2M100", "bpe", {**listed(301), "legacy_behaviour": True}, "eng_Latn", "deu_Latn"
    ),
}


@pytest.fixture(scope="module")
def lines(data_dir: Path) -> list[str]:
    with gzip.open(data_dir / "translation/multi30k-val.en.gz", "rt", encoding="utf-8") as file:
        return file.read().splitlines()[:150]


@pytest.fixture(scope="module")
def tokenizer(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Any]:
    """Writes a family's tokenizer into a folder, as it was published, and returns transformers' one."""
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    stem, options = tmp_path_factory.mktemp("spm"), {"unk_id": 0, "bos_id": 1, "eos_id": 2, "vocab_size": 300}
    for kind in ("unigram", "bpe"):
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(stem / kind), model_type=kind, minloglevel=2, **options
        )

    def write(name: str, folder: Path) -> Any:
        family, model = FAMILIES[name], stem / f"{FAMILIES[name].pieces}.model"
        folder.mkdir(exist_ok=True)
        (folder / "sentencepiece.bpe.model").write_bytes(model.read_bytes())
        settings = {"tokenizer_class": family.tokenizer, **family.settings}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        if family.tokenizer == "M2M100Tokenizer":
            pieces = library.SentencePieceProcessor(model_file=str(model))
            names = ["<s>", "<pad>", "</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, 300))]
            (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
        return getattr(T, family.tokenizer).from_pretrained(folder)

    return write


def read(folder: Path) -> TokenizerCodec:
    codec = published_codec(folder)
    assert codec is not None
    return codec


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_around_and_in_a_text_are_theirs(name: str, tokenizer: Any, lines: list[str], tmp_path: Path) -> None:
    theirs = tokenizer(name, tmp_path / "first")
    theirs.save_pretrained(tmp_path / "again")  # as a tokenizer.json, if they have one
    for folder in (tmp_path / "first", tmp_path / "again"):
        ours = read(folder)
        for text in [PLAIN, OTHER, *lines[::5]]:
            assert ours.tokenizer.encode(text).ids == theirs(text)["input_ids"]
        assert ours.tokenizer.encode(PLAIN, OTHER).ids == theirs(PLAIN, OTHER)["input_ids"]
        ids = theirs(PLAIN)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert (ours.eos_id, ours.pad) == (theirs.eos_token_id, theirs.pad_token_id)
    ours.save(tmp_path / "saved")
    assert read(tmp_path / "saved").tokenizer.encode(PLAIN).ids == theirs(PLAIN)["input_ids"]


def test_byt5_needs_no_vocabulary(lines: list[str], tmp_path: Path) -> None:
    theirs = T.ByT5Tokenizer()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    theirs.save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        ours = read(folder)
        assert ours.vocab_size == len(theirs) == 384
        for text in ["naïve 東京 👍🏽 </s> <pad>", *lines[::9]]:
            wanted = [byte + 3 for byte in text.encode()]
            assert ours.encode(text) == wanted
            assert ours.tokenizer.encode(text).ids == [*wanted, 1]
            assert ours.decode([*wanted, 1]) == text
        assert ours.tokenizer.encode(lines[0]).ids == theirs(lines[0])["input_ids"]
        assert ours.token_id("<extra_id_7>") == theirs.convert_tokens_to_ids("<extra_id_7>")


def model(name: str, tokenizer: Any, folder: Path) -> tuple[Any, Any]:
    """Transformers' tokenizer, and a random model whose translations depend on source, languages and position."""
    theirs, stem = tokenizer(name, folder), FAMILIES[name].model
    starts = theirs.convert_tokens_to_ids("ro_RO") if name == "mbart" else 2
    config = getattr(T, f"{stem}Config")(
        vocab_size=max(theirs.get_vocab().values()) + 9,
        d_model=24,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=200,
        decoder_start_token_id=starts,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    made = getattr(T, f"{stem}ForConditionalGeneration")(config).eval()
    perturb(made, 0.5, 1)
    made.generation_config.eos_token_id = 2
    made.save_pretrained(folder)
    return theirs, made


LINES = [PLAIN, OTHER, "A dog."]


def translated(name: str, theirs: Any, made: Any, beams: int) -> list[str]:
    """What transformers makes of English in German, as its guides say."""
    family, outputs = FAMILIES[name], []
    theirs.src_lang = family.english
    german = f"__{family.german}__" if family.model == "M2M100" and "Nllb" not in family.tokenizer else family.german
    target = theirs.convert_tokens_to_ids(german)
    options = {"decoder_start_token_id": target} if name == "mbart" else {"forced_bos_token_id": target}
    for line in LINES:
        ids = theirs(line, return_tensors="pt")["input_ids"]
        limit = SearchConfig().limit(ids.shape[1])
        settings = {"num_beams": beams, "length_penalty": 0.0, "do_sample": False, "max_new_tokens": limit}
        found = made.generate(ids, **settings, **options)[0]
        outputs.append(theirs.decode(found, skip_special_tokens=True))
    return outputs


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_translations_are_theirs(name: str, tokenizer: Any, tmp_path: Path) -> None:
    theirs, made = model(name, tokenizer, tmp_path)
    wanted = translated(name, theirs, made, 1)
    assert len(set(wanted)) == 3
    for backend in ("torch", "cpu")[: 1 + (name in ("mbart", "nllb"))]:
        ours = hw.load(tmp_path, "cpu", backend=backend)
        assert ours.translate(LINES, beam=1, source="en", target="de") == wanted
        assert ours.translate(LINES, beam=1, source="de", target="de") != wanted
        assert ours.translate(LINES, beam=1, source="en", target="zh") != wanted


@pytest.mark.parametrize("name", ["mbart50", "nllb"])
def test_beams_find_theirs(name: str, tokenizer: Any, tmp_path: Path) -> None:
    theirs, made = model(name, tokenizer, tmp_path)
    found = hw.load(tmp_path, "cpu").translate(LINES, beam=4, length_penalty=0.0, source="en", target="de")
    assert found == translated(name, theirs, made, 4)


def test_a_model_of_several_languages_needs_a_target(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, made = model("nllb", tokenizer, tmp_path)
    ours = hw.load(tmp_path, "cpu")
    with pytest.raises(UserError, match=r"translates into 5 languages; choose one with target \(--to\): ace_Arab, deu"):
        ours.translate(PLAIN)
    with pytest.raises(UserError, match="no language 'xx'; use one of ace_Arab, deu_Latn, eng_Latn"):
        ours.translate(PLAIN, target="xx")
    assert cli.main(["translate", str(tmp_path), "--from", "en", "--to", "de", "--beam", "1", OTHER]) == 0
    assert capsys.readouterr().out.splitlines()[0] == translated("nllb", theirs, made, 1)[1]


def test_opus_mt_is_tuned_with_a_tokenizer_per_language(data_dir: Path, lines: list[str], tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    with gzip.open(data_dir / "translation/multi30k-val.de.gz", "rt", encoding="utf-8") as file:
        german = file.read().splitlines()[:150]
    start, names = tmp_path / "start", ["</s>", "<unk>"]
    start.mkdir()
    for side, texts in (("source", lines), ("target", german)):
        options = {"vocab_size": 300, "model_type": "unigram", "minloglevel": 2}
        library.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_prefix=str(start / side), **options)
        (start / f"{side}.model").rename(start / f"{side}.spm")
        pieces = library.SentencePieceProcessor(model_file=str(start / f"{side}.spm"))
        names += [pieces.id_to_piece(i) for i in range(3, 300)]
    names = [*dict.fromkeys(names), "<pad>"]
    (start / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "de"}
    (start / "tokenizer_config.json").write_text(json.dumps(settings))
    pad = len(names) - 1
    config = T.MarianConfig(
        vocab_size=len(names), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, pad_token_id=pad, eos_token_id=0,
        decoder_start_token_id=pad, bad_words_ids=[[pad]],
    )  # fmt: skip
    T.MarianMTModel(config).save_pretrained(start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would like sacremoses, which changes punctuation
        theirs = T.MarianTokenizer.from_pretrained(start)
    data = tmp_path / "pairs.tsv"
    data.write_text("".join(f"{a}\t{b}\n" for a, b in zip(lines, german)), encoding="utf-8")
    given = {"train.steps": 1, "train.batch_tokens": 512, "train.precision": "fp32"}
    run = hw.train("translation", data, given, run=tmp_path / "run", start=start, progress=False, samples=0)
    batch = next(iter(run.task.batches("train")))
    pairs = {tuple(theirs(a)["input_ids"]): theirs(text_target=b)["input_ids"] for a, b in zip(lines, german)}
    for ids, mask, targets, labels in zip(batch.inputs[0], batch.inputs[1].mask, batch.inputs[2], batch.targets):
        wanted = pairs[tuple(ids[mask].tolist())]
        assert labels[labels >= 0].tolist() == wanted
        assert targets[: len(wanted)].tolist() == [pad, *wanted[:-1]]
    ours = hw.load(tmp_path / "run", "cpu")
    assert theirs.pad_token not in ours.translate(lines[0], beam=1)


def test_the_target_of_opus_mt_stands_before_the_source() -> None:
    codec: Any = None
    plain = _Translator(Codecs(codec, codec), lambda texts: [[7, 8] for _ in texts], 1, 2, languages={"deu": 5})
    assert _with_languages(plain, Usage("marian"), None, "de").to_source_ids(["a"]) == [[5, 7, 8]]
    assert _with_languages(plain, Usage("marian"), None, None).to_source_ids(["a"]) == [[7, 8]]
    with pytest.raises(UserError, match="no source languages to choose from; remove 'en'"):
        _with_languages(plain, Usage("marian"), "en", "de")
    with pytest.raises(UserError, match="no target languages to choose from; remove 'de'"):
        _with_languages(plain._replace(languages={}), Usage("t5"), None, "de")


def test_short_codes_stand_for_languages() -> None:
    nllb = {code: i for i, code in enumerate(FLORES)}
    mbart = {code: i for i, code in enumerate(TOKENS_IN_ORDER["mbart50"])}
    found = [language_id(nllb, code) for code in ("de", "deu", "DEU-Latn", "zh", "zh-Hant", "ace")]
    assert [FLORES[i] for i in found] == ["deu_Latn", "deu_Latn", "deu_Latn", "zho_Hans", "zho_Hant", "ace_Arab"]
    assert [language_id(mbart, code) for code in ("de", "zh", "en")] == [mbart["de_DE"], mbart["zh_CN"], mbart["en_XX"]]
    assert language_id({"de": 3}, "de") == language_id({"deu": 3, "fra": 4}, "deu") == 3
    with pytest.raises(UserError, match="several languages 'zho'; use one of zho_Hans, zho_Hant"):
        language_id(nllb, "zho")
