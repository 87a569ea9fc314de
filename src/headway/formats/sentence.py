"""Sentence encoders: folders in the layout of sentence-transformers, whose vectors are a pooled head of the model.

modules.json lists what follows the transformer: 1_Pooling makes a vector of a text's tokens, 2_Normalize brings it to
unit length. Neither has weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.formats.durable import read_json, write_json
from headway.formats.settings import Settings
from headway.nn.models import ModelConfig, PooledHeadConfig, TransformerConfig
from headway.nn.models.pooled import Pool

MODULES = "modules.json"
HEAD = "embedding"
_TYPES = "sentence_transformers.models."
_POOLS: dict[str, Pool] = {"mean": "mean", "cls": "first", "lasttoken": "last"}
_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}


def with_embedding(config: ModelConfig, directory: Path) -> ModelConfig:
    """`config` with the head "embedding" where the folder is a sentence encoder's; else as it is."""
    path = directory / MODULES
    if not path.is_file() or not isinstance(config, TransformerConfig):
        return config
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise UserError(f"{path} is not a list of modules; download it again")
    modules = [Settings(each, str(path)) for each in listed]
    kinds = [module.get("type", str).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{path} lists {', '.join(kinds)}, which is not supported; it may be Transformer, Pooling and Normalize"
        )
    folder = modules[1].get("path", str)
    if not folder or Path(folder).name != folder:
        raise UserError(f"{path} keeps its pooling in {folder!r}, which is not a folder beside it; download it again")
    pool = _pool(directory / folder / "config.json")
    head = PooledHeadConfig(pool=pool, unit="Normalize" in kinds)
    return replace(config, heads={**config.heads, HEAD: head})


def _pool(path: Path) -> Pool:
    """How tokens become a vector: by name in newer files, by a flag for each way in older ones."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a mapping of settings; download it again")
    flags = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    modes = [values["pooling_mode"]] if "pooling_mode" in values else [name for name, f in _FLAGS.items() if f in flags]
    if len(modes) != 1 or len(flags) > 1 or modes[0] not in _POOLS:
        raise UserError(
            f"{path} pools by {', '.join(map(str, flags or modes)) or 'nothing'}, which is not supported; "
            f"it may be one of {', '.join(_POOLS)}"
        )
    return _POOLS[modes[0]]


def without_embedding(config: ModelConfig) -> ModelConfig:
    """`config` as its config.json says it: the head "embedding" stands in files of its own. UserError if it cannot."""
    if not isinstance(config, TransformerConfig) or HEAD not in config.heads:
        return config
    _mode(config.heads[HEAD])
    return replace(config, heads={name: head for name, head in config.heads.items() if name != HEAD})


def write_embedding(config: ModelConfig, directory: Path) -> None:
    """modules.json and the folders that it names, where `config` has the head "embedding"."""
    head = config.heads.get(HEAD) if isinstance(config, TransformerConfig) else None
    if not isinstance(config, TransformerConfig) or head is None:
        return
    mode = _mode(head)
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    parts += [("2_Normalize", "Normalize")] if isinstance(head, PooledHeadConfig) and head.unit else []
    listed = [{"idx": i, "name": str(i), "path": p, "type": _TYPES + kind} for i, (p, kind) in enumerate(parts)]
    write_json(directory / MODULES, listed)
    pooling: dict[str, Any] = {"word_embedding_dimension": config.width}
    pooling |= {flag: mode == name for name, flag in _FLAGS.items()}
    pooling |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    for path, _ in parts[1:]:
        (directory / path).mkdir(exist_ok=True)
    write_json(directory / "1_Pooling" / "config.json", pooling)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": config.context})


def _mode(head: object) -> str:
    """The published name of the head's pooling. UserError for a head that has weights, which the layout cannot hold."""
    if isinstance(head, PooledHeadConfig):
        for mode, pool in _POOLS.items():
            if head == PooledHeadConfig(pool=pool, unit=head.unit):
                return mode
    raise UserError(
        f"the head {HEAD!r} is {head}, which the layout of sentence-transformers cannot express; "
        f"pool by {', '.join(_POOLS)}, without weights"
    )
