"""Changed configurations of every published family, compared with transformers: no result may be silently wrong.

    python benchmarks/configurations.py [FAMILY ...]      # tiny random models, one change of a setting at a time
    python benchmarks/configurations.py --real [FAMILY ...]   # configurations of published models, made smaller

For each case transformers makes a model of the changed config.json, with random weights, and saves it. Then both
programs open the folder. A case is "equal" if the outputs agree, "refused" if headway ends with a UserError,
"unsupported" if transformers itself cannot open or run the model, and "wrong" otherwise. Exit 0 if no case is wrong.
`--out results/configurations.json` writes the counts, every refusal and every wrong case; families that are not run
keep the results that the file has.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, ImageClassificationPipeline, TextClassificationPipeline

from configuration_changes import TIED, WEIGHT_CHANGES, changes
from headway.bench.benchmark import machine
from headway.errors import UserError
from headway.formats.published import load_published
from headway.formats.usage import named_scores
from headway.layout import Layout
from headway.nn.models import TokenInputs, TrajectoryInputs
from measure import data_folder

TOLERANCE = 2e-4  # in units of the largest output, if that is above 1
LENGTHS = [19, 6, 13]
VOCAB = 67

LABELS = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DECODER = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    **IDS,
}
ENCODER = {
    "vocab_size": VOCAB,
    "max_position_embeddings": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
GPT = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, **IDS}
SEQ2SEQ = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 16, "patch_size": 4}


@dataclass(frozen=True)
class Subject:
    """A model class of transformers, its small configuration, and the kind of its inputs and outputs."""

    family: str
    name: str
    settings: Mapping[str, Any]
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self) -> Any:
        return getattr(transformers, self.name).config_class(**deepcopy(dict(self.settings)))


def subjects() -> Iterator[Subject]:
    """Every family, by each of the classes that are read."""
    windows = {"use_sliding_window": True, "sliding_window": 5}
    decoders: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("Llama", {}),
        "mistral": ("Mistral", {"sliding_window": 5}),
        "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
        "qwen2": ("Qwen2", {**windows, "max_window_layers": 2}),
        "qwen3": ("Qwen3", {**windows, "max_window_layers": 2, "head_dim": 10}),
        "gemma": ("Gemma", {"head_dim": 10}),
        "gemma2": ("Gemma2", {"head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 7}),
        "gemma3_text": (
            "Gemma3",
            {"head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 7}
            | {"layer_types": ["sliding_attention", "full_attention"] * 2},
        ),
        "phi3": ("Phi3", {"original_max_position_embeddings": 64, "sliding_window": 5}),
        "olmo2": ("Olmo2", {}),
        "smollm3": ("SmolLM3", {**windows, "no_rope_layer_interval": 2}),
        "stablelm": ("StableLm", {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.25}}),
        "gpt_neox": ("GPTNeoX", {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}}),
    }
    for family, (stem, own) in decoders.items():
        base = {**DECODER, **own}
        if family == "gpt_neox":
            del base["num_key_value_heads"]
        yield Subject(family, f"{stem}ForCausalLM", base, "decoder")
        classes = f"{stem}Text" if family == "gemma3_text" else stem
        classes += "ForSequenceClassification"
        if hasattr(transformers, classes):
            yield Subject(family, classes, {**base, **LABELS}, "classes")
    for family, stem in (("gpt2", "GPT2"), ("openai-gpt", "OpenAIGPT")):
        yield Subject(family, f"{stem}LMHeadModel", GPT, "decoder")
        yield Subject(family, f"{stem}ForSequenceClassification", {**GPT, **LABELS}, "classes")
    encoders: dict[str, tuple[str, dict[str, Any]]] = {
        "bert": ("Bert", ENCODER),
        "roberta": ("Roberta", {**ENCODER, "pad_token_id": 1}),
        "xlm-roberta": ("XLMRoberta", {**ENCODER, "pad_token_id": 1}),
        "distilbert": ("DistilBert", {"vocab_size": VOCAB, "max_position_embeddings": 40, "dim": 16, "n_layers": 4}
        | {"n_heads": 4, "hidden_dim": 24, "pad_token_id": 0}),
        "modernbert": ("ModernBert", {**ENCODER, "local_attention": 6, "bos_token_id": 1, "eos_token_id": 2}
        | {"cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 4}),
    }  # fmt: skip
    for family, (stem, base) in encoders.items():
        yield Subject(family, f"{stem}Model", base, "hidden")
        yield Subject(family, f"{stem}ForMaskedLM", base, "masked")
        yield Subject(family, f"{stem}ForSequenceClassification", {**base, **LABELS}, "classes")
        yield Subject(family, f"{stem}ForTokenClassification", {**base, **LABELS}, "tags")
    t5 = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2, "num_heads": 3}
    yield Subject("t5", "T5ForConditionalGeneration", {**t5, "decoder_start_token_id": 0}, "seq2seq")
    yield Subject("bart", "BartForConditionalGeneration", {**SEQ2SEQ, "forced_eos_token_id": None}, "seq2seq")
    yield Subject("marian", "MarianMTModel", {**SEQ2SEQ, "forced_eos_token_id": None}, "seq2seq")
    speech = {name: value for name, value in SEQ2SEQ.items() if name != "max_position_embeddings"}
    speech |= {"num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 30, **IDS}
    speech |= {"suppress_tokens": [], "begin_suppress_tokens": [5, 6]}
    yield Subject("whisper", "WhisperForConditionalGeneration", speech, "speech")
    for family, stem in (("vit", "ViT"), ("deit", "DeiT")):
        yield Subject(family, f"{stem}Model", VISION, "pooled image")
        yield Subject(family, f"{stem}ForImageClassification", {**VISION, **LABELS}, "image classes")
    text = {**TOWER, "vocab_size": VOCAB, "max_position_embeddings": 9, "eos_token_id": 66, "bos_token_id": 65}
    towers = {"text_config": text, "vision_config": VISION}
    yield Subject("clip", "CLIPModel", {**towers, "projection_dim": 12}, "towers")
    yield Subject("siglip", "SiglipModel", towers, "towers")
    steps = {"state_dim": 5, "act_dim": 3, "max_ep_len": 50, "n_positions": 40, "hidden_size": 16, "n_layer": 2}
    yield Subject("decision_transformer", "DecisionTransformerModel", {**steps, "n_head": 2}, "trajectory")


# Running both programs.


def random(*shape: int, seed: int = 4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_rows(config: Any, lengths: list[int]) -> tuple[Tensor, Tensor, Layout]:
    """Random ids of several lengths, their attention mask, and the layout; no id is that of the padding."""
    vocab = min(getattr(config, "vocab_size", VOCAB), getattr(config, "decoder_vocab_size", None) or VOCAB, VOCAB)
    layout, pad = Layout.padded(lengths), getattr(config, "pad_token_id", None)
    if not isinstance(pad, int) or not 0 <= pad < vocab:  # transformers cannot tell tokens from padding
        layout = Layout.full(len(lengths), lengths[-1])
    ids = torch.randint(5, vocab, layout.positions.shape, generator=torch.Generator().manual_seed(0))
    if pad is not None:
        ids = torch.where(ids == pad, 4, ids).masked_fill(~layout.mask, pad)
    return ids, layout.mask.long(), layout


Outputs = tuple[Tensor, Tensor | None]  # theirs or ours, and which of its positions are tokens


def run_text(kind: str, theirs: Any) -> tuple[Callable[[], Outputs], Callable[[Any], Tensor]]:
    config = theirs.config
    ids, mask, layout = token_rows(config, LENGTHS)
    given, own = {"input_ids": ids, "attention_mask": mask}, ids
    kinds = getattr(config, "type_vocab_size", 0)
    if kinds > 0 and kind != "decoder":
        types = torch.randint(0, kinds, ids.shape, generator=torch.Generator().manual_seed(5))
        given, own = {**given, "token_type_ids": types}, TokenInputs(ids, types)
    head = {"decoder": "vocabulary", "masked": "vocabulary", "classes": "classes", "tags": "tags"}.get(kind)

    def run_theirs() -> Outputs:
        output = theirs(**given)
        if kind == "hidden":
            return output.last_hidden_state, layout.mask
        scores = output.prediction_logits if "prediction_logits" in output else output.logits
        return scores, None if kind == "classes" else layout.mask

    def run_ours(ours: Any) -> Tensor:
        if kind == "decoder":
            return ours.logits(own, layout)
        return ours(own, layout).x if head is None else ours.output(head, own, layout)

    return run_theirs, run_ours


def run_seq2seq(kind: str, theirs: Any) -> tuple[Callable[[], Outputs], Callable[[Any], Tensor]]:
    target, mask, layout = token_rows(theirs.config, [11, 7, 4])
    given = {"decoder_input_ids": target, "decoder_attention_mask": mask}
    if kind == "speech":
        length = 2 * theirs.config.max_source_positions
        frames = random(3, length, theirs.config.num_mel_bins)
        given["input_features"], source, about = frames.transpose(1, 2), frames, Layout.full(3, length)
    else:
        source, attended, about = token_rows(theirs.config, LENGTHS)
        given |= {"input_ids": source, "attention_mask": attended}

    def run_ours(ours: Any) -> Tensor:
        return ours.heads["vocabulary"](ours(source, about, target, layout).x)

    return lambda: (theirs(**given).logits, layout.mask), run_ours


def run_images(kind: str, theirs: Any) -> tuple[Callable[[], Outputs], Callable[[Any], Tensor]]:
    size = theirs.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = random(3, theirs.config.num_channels, height, width)
    name, head = ("pooler_output", "pooled") if kind == "pooled image" else ("logits", "classes")
    return lambda: (theirs(pixels)[name], None), lambda ours: ours.output(head, pixels)


def run_towers(kind: str, theirs: Any) -> tuple[Callable[[], Outputs], Callable[[Any], Tensor]]:
    vision, text = theirs.config.vision_config, theirs.config.text_config
    size = vision.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels, length = random(3, vision.num_channels, height, width), text.max_position_embeddings
    ids = torch.randint(5, min(text.vocab_size, VOCAB) - 2, (4, length), generator=torch.Generator().manual_seed(5))
    named = text.eos_token_id != 2 and text.eos_token_id < text.vocab_size  # older files mean the highest id by 2
    ids[:, -1] = text.eos_token_id if named else min(text.vocab_size, VOCAB) - 1
    ids[1, 4:] = ids[0, -1]
    return lambda: (theirs(input_ids=ids, pixel_values=pixels).logits_per_image, None), lambda ours: ours(pixels, ids)


def run_steps(kind: str, theirs: Any) -> tuple[Callable[[], Outputs], Callable[[Any], Tensor]]:
    config = theirs.config
    positions = torch.arange(6).expand(3, 6)
    inputs = TrajectoryInputs(
        random(3, 6, seed=1), random(3, 6, config.state_dim, seed=2), random(3, 6, config.act_dim, seed=3), positions
    )
    layout = Layout.full(3, 6)

    def run_theirs() -> Outputs:
        returns = inputs.returns[..., None]  # type: ignore[index]
        output = theirs(
            states=inputs.states, actions=inputs.actions, rewards=None, returns_to_go=returns, timesteps=positions,
            attention_mask=torch.ones(3, 6, dtype=torch.long),
        )  # fmt: skip
        return torch.cat([output.action_preds, output.state_preds, output.return_preds], -1), None

    def run_ours(ours: Any) -> Tensor:
        encoded = ours(inputs, layout)
        heads = ("actions", "states", "returns")
        return torch.cat([ours.heads[name](encoded.x, encoded.layout) for name in heads], -1)

    return run_theirs, run_ours


RUNNERS: dict[str, Callable[[str, Any], tuple[Callable[[], Outputs], Callable[[Any], Tensor]]]] = {
    "seq2seq": run_seq2seq,
    "speech": run_seq2seq,
    "pooled image": run_images,
    "image classes": run_images,
    "towers": run_towers,
    "trajectory": run_steps,
}


def perturb(model: nn.Module, noise: float = 0.2) -> None:
    """Move every trained number, so that no norm is 1 and no bias 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None:
            bias.normal_(generator=generator)


def difference(a: Tensor, b: Tensor, keep: Tensor | None) -> float:
    """The largest difference in units of the largest value; infinite for other shapes and for NaN on one side."""
    if a.shape != b.shape:
        return float("inf")
    a, b = (a, b) if keep is None else (a[keep], b[keep])
    found = float((a - b).abs().max() / a.abs().max().clamp(min=1.0))
    return float("inf") if found != found else found


@dataclass
class Outcome:
    """How a case ended: equal, refused, unsupported or wrong; and in what words."""

    kind: str
    detail: str = ""


def written(subject: Subject, settings: dict[str, Any], change: str, folder: Path) -> None:
    """The model of `settings` that transformers makes, saved with exactly these settings in its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(zlib.crc32(subject.name.encode()))
    model = getattr(transformers, subject.name)(config).eval()
    perturb(model)
    model.save_pretrained(folder)
    path.write_text(json.dumps(settings), encoding="utf-8")
    weight_change = WEIGHT_CHANGES.get(change.removesuffix(TIED))
    if weight_change is not None:
        weights = folder / "model.safetensors"
        tensors = weight_change(load_file(weights))
        if tensors is None:
            raise NotImplementedError(f"{subject.name} has no such tensor")
        save_file(tensors, weights, {"format": "pt"})


def reference(subject: Subject, folder: Path) -> Any:
    """The model that transformers opens; LookupError if some of its weights are not in the file."""
    cls = getattr(transformers, subject.name)
    model, loading = cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    lost = {*loading["missing_keys"], *loading["unexpected_keys"], *(each[0] for each in loading["mismatched_keys"])}
    if lost:
        raise LookupError(f"transformers finds tensors missing, unexpected or of another shape: {sorted(lost)[:3]}")
    return model.eval()


def compare(subject: Subject, folder: Path) -> Outcome:
    """Both programs on one folder."""
    try:
        theirs = reference(subject, folder)
        run_theirs, run_ours = RUNNERS.get(subject.kind, run_text)(subject.kind, theirs)
        with torch.inference_mode():
            wanted, keep = run_theirs()
    except Exception as error:
        return Outcome("unsupported", f"{type(error).__name__}: {str(error)[:160]}")
    try:
        ours, usage = load_published(folder)
    except UserError as error:
        return Outcome("refused", str(error).replace(str(folder), "FOLDER"))
    except Exception:
        return Outcome("wrong", "traceback: " + traceback.format_exc(limit=-2).replace(str(folder), "FOLDER"))
    try:
        with torch.inference_mode():
            found = run_ours(ours)
    except Exception:
        return Outcome("wrong", "traceback: " + traceback.format_exc(limit=-2))
    distance = difference(wanted, found, keep)
    if distance > TOLERANCE:
        return Outcome("wrong", f"outputs differ by {distance:.2g}")
    if "classes" in subject.kind:
        return compare_scores(subject, theirs, wanted, usage)
    return Outcome("equal")


def compare_scores(subject: Subject, theirs: Any, logits: Tensor, usage: Any) -> Outcome:
    """What both programs make of the logits: probabilities by softmax or label by label, or the numbers."""
    images = subject.kind.startswith("image")
    pipeline = ImageClassificationPipeline if images else TextClassificationPipeline
    judge = pipeline.__new__(pipeline)
    judge.model = theirs
    for row in logits:
        output = type("Output", (dict,), {"logits": row[None]})(logits=row[None])
        try:
            options = {"top_k": theirs.config.num_labels} if images else {"top_k": None, "_legacy": False}
            wanted = {each["label"]: each["score"] for each in judge.postprocess(output, **options)}
        except Exception as error:
            return Outcome("unsupported", f"{type(error).__name__}: {str(error)[:160]}")
        try:
            found = named_scores(row[None], usage)[0]
        except UserError as error:
            return Outcome("refused", str(error))
        if found.keys() == {"value"}:  # a single output is returned as it is, unless it is a label's
            found, wanted = dict(found), {"value": float(row)}
        if found.keys() != wanted.keys() or max(abs(found[name] - wanted[name]) for name in wanted) > TOLERANCE:
            return Outcome("wrong", f"scores are {found}, those of transformers {wanted}")
    return Outcome("equal")


def try_case(subject: Subject, settings: dict[str, Any], change: str) -> Outcome:
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        try:
            written(subject, settings, change, folder)
        except Exception as error:
            return Outcome("unsupported", f"{type(error).__name__}: {str(error)[:160]}")
        return compare(subject, folder)


# Real configurations.

SMALLER = {
    "hidden_size": 32, "n_embd": 32, "dim": 32, "d_model": 32, "num_attention_heads": 4, "n_head": 4, "n_heads": 4,
    "num_heads": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "intermediate_size": 48, "d_ff": 48,
    "n_inner": 48, "hidden_dim": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "head_dim": 8, "d_kv": 8,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_local_experts": 4, "sliding_window": 5, "max_window_layers": 2, "projection_dim": 16,
}  # fmt: skip


def smaller(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A published configuration with fewer and narrower layers; all else stays as it is."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "num_key_value_heads" and isinstance(value, int):
            value = 4 if value == settings.get("num_attention_heads") else 2
        elif isinstance(value, Mapping):
            value = smaller(value)
        elif name in ("short_factor", "long_factor", "layer_types", "no_rope_layers"):
            value = value[:4]
        elif name in SMALLER and isinstance(value, int) and not isinstance(value, bool):
            value = min(SMALLER[name], value)
        found[name] = value
    return found


def real_cases(families: list[str]) -> Iterator[tuple[str, Subject, dict[str, Any]]]:
    """The configurations of the families that are read, smaller."""
    kinds = {subject.name: subject for subject in subjects()}
    known = {subject.family for subject in kinds.values()}
    for path in sorted((data_folder() / "configs").glob("*/config.json")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        family, name = settings.get("model_type"), (settings.get("architectures") or [""])[0]
        if family not in known or (families and family not in families):
            continue
        alike = next(each for each in kinds.values() if each.family == family)
        kind = "masked" if name.endswith("ForPreTraining") else "hidden" if name.endswith("Model") else alike.kind
        subject = kinds.get(name, Subject(family, name, {}, kind))
        yield path.parent.name, subject, smaller(settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="only these families (default: all)")
    parser.add_argument("--real", action="store_true", help="use the configurations of published models")
    parser.add_argument("--only", help="only changes whose name contains this text")
    parser.add_argument("--out", type=Path, help="write the results to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("headway").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows: dict[str, dict[str, Outcome]] = {}
    if args.real:
        for name, subject, settings in real_cases(args.families):
            rows.setdefault("published configurations", {})[name] = try_case(subject, settings, "")
    else:
        for subject in subjects():
            if args.families and subject.family not in args.families:
                continue
            base = json.loads(subject.config().to_json_string(use_diff=False))
            base["architectures"] = [subject.name]
            base.pop("transformers_version", None)
            found = rows[f"{subject.family} {subject.name}"] = {}
            first = sum(name.startswith(f"{subject.family} ") for name in rows) == 1
            for change, settings in changes(base, every=first):
                if args.only is None or args.only in change:
                    found[change] = try_case(subject, settings, change)
            for change, outcome in found.items():
                if outcome.kind == "wrong":
                    print(f"WRONG {subject.name}: {change}: {outcome.detail}")
            print(f"{subject.name}: {dict(Counter(each.kind for each in found.values()))}", flush=True)
    return report(rows, args.out)


def report(rows: dict[str, dict[str, Outcome]], out: Path | None) -> int:
    wrong = [(name, change, o.detail) for name, row in rows.items() for change, o in row.items() if o.kind == "wrong"]
    totals = Counter(each.kind for row in rows.values() for each in row.values())
    print(dict(totals))
    if out is not None:
        cases = {
            name: {
                "counts": dict(Counter(each.kind for each in row.values())),
                **{
                    kind: {
                        change: re.sub(r"/\S+/model\b", "FOLDER", o.detail)
                        for change, o in row.items()
                        if o.kind == kind
                    }
                    for kind in ("refused", "unsupported", "wrong")
                },
            }
            for name, row in rows.items()
        }
        if out.is_file():  # what was run before stays
            before = json.loads(out.read_text(encoding="utf-8"))["cases"]
            cases = dict(sorted({**before, **cases}.items()))
            totals = Counter()
            for case in cases.values():
                totals.update(case["counts"])
        found = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "totals": dict(totals), "cases": cases}
        text = json.dumps(found, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
