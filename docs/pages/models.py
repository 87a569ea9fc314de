"""Presets, families of published models, and endpoints of the server."""

from __future__ import annotations

from collections.abc import Mapping

import headway as hw
from headway.formats.families import families
from headway.serve.app import ENDPOINTS
from pages.settings import GENERATED

PRESET_HEAD = f"""# Presets

A preset is a published architecture with random weights. `headway show NAME` prints its parameters, memory and blocks without allocating
them; `headway bench train --shape NAME` measures it on your machine.

{GENERATED}

| preset | parameters |
|---|---|
"""

FAMILY_HEAD = f"""# Model families and file formats

Commands and `hw.load` accept a run, or a published model in one of these formats:

| format | read | written by |
|---|---|---|
| a run's folder | yes | `headway train` |
| headway's own folder (`model.safetensors`, `recipe.json`) | yes | `headway import` |
| transformers (`config.json` with safetensors or `pytorch_model.bin`) | yes | `headway export OUT` |
| GGUF (f32, f16, bf16 and quantised blocks, in one file or several) | yes | `headway export OUT.gguf --dtype f32|f16|q8_0` |
| quantised folders (int8, int4) | yes | `headway quantize` |
| folders that others have quantised: AWQ, GPTQ, FP8, compressed-tensors, bitsandbytes, MLX | yes, as 32-bit floats | no |
| PEFT adapters (LoRA, DoRA) | yes | `headway export` of a run with `--lora` merges them |
| llama2.c binaries | yes | no |
| Whisper of CTranslate2 | yes | no |
| LeRobot policies (ACT, diffusion) | yes | yes |
| ONNX | no | `headway export OUT.onnx` (extra `onnx`) |

[Published models](../guides/published.md) has commands for each.

{GENERATED}

## Families

`model_type` in a model's `config.json` names its family.

| family | model |
|---|---|
"""

HTTP_HEAD = f"""# HTTP API

`headway serve` answers these requests. A running server has the OpenAPI document with all fields at `/openapi.json` and shows it at `/docs`;
[Serving](../guides/serving.md) introduces them with examples.

{GENERATED}

| method | path | summary |
|---|---|---|
"""

# Names of families as people write them.
TITLES: Mapping[str, str] = {
    "act": "ACT (action chunking with transformers, LeRobot)",
    "bart": "BART",
    "bert": "BERT, and sentence encoders made of it",
    "clip": "CLIP",
    "cohere": "Command R, Command R+, Aya",
    "cohere2": "Command R7B, Command A",
    "decision_transformer": "Decision Transformer",
    "deit": "DeiT",
    "diffusion": "Diffusion Policy (LeRobot)",
    "distilbert": "DistilBERT",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "glm": "GLM-4 9B",
    "glm4": "GLM-4 of 2025 (0414)",
    "glm4_moe": "GLM-4.5 (mixtures of experts)",
    "gpt2": "GPT-2",
    "gpt_bigcode": "GPT-BigCode (SantaCoder, StarCoder)",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt_oss": "gpt-oss",
    "granite": "Granite 3",
    "granitemoe": "Granite 3 (mixtures of experts)",
    "llama": "Llama, SmolLM2, TinyLlama",
    "m2m_100": "M2M-100, NLLB (translation of up to 200 languages)",
    "marian": "Marian (OPUS-MT)",
    "mbart": "mBART",
    "ministral": "Ministral",
    "mistral": "Mistral",
    "mixtral": "Mixtral",
    "mpnet": "MPNet, and sentence encoders made of it",
    "modernbert": "ModernBERT",
    "mt5": "mT5",
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
    "umt5": "umT5",
    "vit": "ViT",
    "whisper": "Whisper",
    "xlm-roberta": "XLM-RoBERTa",
}


def presets() -> str:
    """The page of presets."""
    rows = [f"| `{row['name']}` | {row['parameters']:,} |" for row in hw.presets()]
    return PRESET_HEAD + "\n".join(rows) + "\n"


def formats() -> str:
    """The page of families and formats. Raises KeyError for a family without a title here."""
    rows = [f"| `{name}` | {TITLES[name]} |" for name in sorted(families())]
    return FAMILY_HEAD.replace("f32|f16|q8_0", "f32\\|f16\\|q8_0") + "\n".join(rows) + "\n"


def http() -> str:
    """The page of endpoints."""
    rows = [f"| {one.method} | `{one.path.replace(':path}', '}')}` | {one.summary} |" for one in ENDPOINTS]
    return HTTP_HEAD + "\n".join(rows) + "\n"
