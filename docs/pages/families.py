"""Families of published models: what the compiled engine runs of each, and the test that compares it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from headway.engine import quantise, refusal
from headway.engine.encoder import CannotLowerError, StackProgram
from headway.formats.families import families
from headway.formats.native import read_config
from headway.formats.settings import Settings
from headway.nn.models import EncoderDecoder, build
from headway.nn.models.kinds import generates
from headway.nn.models.stack import Stack

TESTS = Path(__file__).parents[2] / "tests"

# Names of families as people write them.
TITLES: Mapping[str, str] = {
    "act": "ACT (action chunking with transformers, LeRobot)",
    "albert": "ALBERT",
    "bart": "BART",
    "bert": "BERT, and sentence encoders made of it; Jina v2",
    "clip": "CLIP",
    "cohere": "Command R, Command R+, Aya",
    "cohere2": "Command R7B, Command A",
    "deberta-v2": "DeBERTa v2 and v3",
    "decision_transformer": "Decision Transformer",
    "deit": "DeiT",
    "diffusion": "Diffusion Policy (LeRobot)",
    "distilbert": "DistilBERT",
    "electra": "ELECTRA",
    "esm": "ESM-2, ESM-1b (proteins)",
    "eurobert": "EuroBERT",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text), EmbeddingGemma",
    "glm": "GLM-4 9B",
    "glm4": "GLM-4 of 2025 (0414)",
    "glm4_moe": "GLM-4.5 (mixtures of experts)",
    "gpt2": "GPT-2",
    "gpt_bigcode": "GPT-BigCode (SantaCoder, StarCoder)",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_oss": "gpt-oss",
    "granite": "Granite 3",
    "granitemoe": "Granite 3 (mixtures of experts)",
    "gte": "GTE (gte-multilingual-base)",
    "llama": "Llama, SmolLM2, TinyLlama",
    "m2m_100": "M2M-100, NLLB (translation of up to 200 languages)",
    "marian": "Marian (OPUS-MT)",
    "mbart": "mBART",
    "ministral": "Ministral",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet, and sentence encoders made of it",
    "mt5": "mT5",
    "new": "GTE with code of its own (gte-large-en-v1.5)",
    "nomic_bert": "NomicBERT (nomic-embed-text)",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "olmoe": "OLMoE",
    "openai-gpt": "GPT-1",
    "pegasus": "Pegasus",
    "phi3": "Phi-3",
    "qwen2": "Qwen 2, Qwen 2.5",
    "qwen2_moe": "Qwen 1.5 and 2 (mixtures of experts)",
    "qwen3": "Qwen 3",
    "qwen3_moe": "Qwen 3 (mixtures of experts)",
    "roberta": "RoBERTa",
    "siglip": "SigLIP",
    "smollm3": "SmolLM3",
    "stablelm": "StableLM",
    "starcoder2": "StarCoder 2",
    "t5": "T5, Flan-T5, ByT5",
    "t5gemma": "T5Gemma",
    "umt5": "umT5",
    "vit": "ViT",
    "whisper": "Whisper",
    "xlm-roberta": "XLM-RoBERTa",
}

# Tests that compare a model with transformers' or LeRobot's, by the names of the classes in them.
COMPARISONS: Mapping[str, str] = {
    "decoder_models.py": "test_decoders.py",
    "test_encoders.py": "test_encoders.py",
    "test_encoder_traps.py": "test_encoder_traps.py",
    "test_seq2seq.py": "test_seq2seq.py",
    "test_vision.py": "test_vision.py",
    "test_image_text.py": "test_image_text.py",
    "test_whisper.py": "test_whisper.py",
    "test_lerobot.py": "test_lerobot.py",
    "test_trajectories.py": "test_trajectories.py",
}


def rows() -> list[str]:
    """A row per family. Raises KeyError for a family without a title, and ValueError for one that no test compares."""
    sys.path.append(str(TESTS / "fuzz"))
    from model_readers import NAMES, config_seeds

    found = []
    for name, smallest in zip(sorted(families()), config_seeds(TESTS)):
        family = families()[name]
        config = read_config(family, Settings({**family.defaults, **json.loads(smallest)}, name), NAMES)
        found.append(f"| `{name}` | {TITLES[name]} | {compiled_parts(config)} | {comparison(name)} |")
    return found


def compiled_parts(config: Any) -> str:
    """What the engine runs of a model: generation, and encoders whose weights are quantised."""
    model: Any = build(config, 0)
    parts = ["generation"] if generates(config) and refusal(model) is None else []
    quantise(model, "int8")
    encoder = model.encoder if isinstance(model, EncoderDecoder) else None if generates(config) else model
    stacks = [] if encoder is None else [each for each in encoder.modules() if isinstance(each, Stack)]
    if stacks and all(map(has_instructions, stacks)):
        parts.append("encoder")
    return ", ".join(parts) or "none"


def has_instructions(stack: Stack) -> bool:
    try:
        StackProgram(stack)
    except CannotLowerError:
        return False
    return True


def comparison(name: str) -> str:
    """A link to the test that compares a family."""
    stem = CONFIG_MAPPING_NAMES.get(name, f"{name}Config").removesuffix("Config")
    for source, test in COMPARISONS.items():
        text = (TESTS / "parity" / source).read_text(encoding="utf-8")
        if re.search(rf"""["'.]({stem}|{stem}(For|Model|Config)\w*|{re.escape(name)})["'(,.]""", text):
            return f"[{test}](../../tests/parity/{test})"
    raise ValueError(f"no test in tests/parity compares the family {name}")
