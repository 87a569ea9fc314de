"""Presets, families of published models, and endpoints of the server."""

from __future__ import annotations

import headway as hw
from headway.serve.app import ENDPOINTS
from pages import families
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
| GGUF (f32, f16, bf16 and quantised blocks, in one file or several) | yes | `headway export OUT.gguf --dtype FORMAT` |
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

`model_type` in a model's `config.json` names its family. All families are read and, if the model has no parts that the family lacks, written.

*Compiled* is what the [CPU engine](../explanation/engine.md) runs: generation with weights in fp32, int8 or int4, and encoders with int8 or int4; PyTorch runs the rest.
The tests compare random models with transformers' or LeRobot's: outputs, gradients, generated tokens, and the exported folder.

| family | models | compiled | test |
|---|---|---|---|
"""

HTTP_HEAD = f"""# HTTP API

`headway serve` answers these requests. A running server has the OpenAPI document with all fields at `/openapi.json` and shows it at `/docs`;
[Serving](../guides/serving.md) introduces them with examples.

{GENERATED}

| method | path | summary |
|---|---|---|
"""


def presets() -> str:
    """The page of presets."""
    rows = [f"| `{row['name']}` | {row['parameters']:,} |" for row in hw.presets()]
    return PRESET_HEAD + "\n".join(rows) + "\n"


def formats() -> str:
    """The page of families and formats."""
    return FAMILY_HEAD + "\n".join(families.rows()) + "\n"


def http() -> str:
    """The page of endpoints."""
    rows = [f"| {one.method} | `{one.path.replace(':path}', '}')}` | {one.summary} |" for one in ENDPOINTS]
    return HTTP_HEAD + "\n".join(rows) + "\n"
