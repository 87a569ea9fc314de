"""Every setting that a class of transformers has or reads is accounted for by the family's table."""

from __future__ import annotations

import ast
import inspect
import json
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

import pytest

from headway.formats.families import families
from headway.formats.lerobot import POLICIES
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family, known_keys, with_aliases

T = pytest.importorskip("transformers")
FAMILIES = sorted(families().keys() - {*POLICIES, "new"})  # "new" is the name of GTE for code of its own
# What modules of transformers read of a configuration object and a config.json cannot set.
METHODS = {"get_text_config", "get_mtp_config", "to_dict", "text_config", "vision_config", "hf_quantizer"}
# Of classes of these modules that are not read: other towers, speech classifiers, multi-token prediction.
ELSEWHERE = {
    "gemma3_text": {"image_token_id", "mm_tokens_per_image"},
    "whisper": {"classifier_proj_size", "use_weighted_layer_sum", "id", "n_positions"},
    "siglip": {"id"},
    "vit": {"encoder_stride"},
    "deit": {"encoder_stride"},
}


def config_class(name: str) -> Any:
    return type(T.AutoConfig.for_model(name))


def read_attributes(module: Any) -> set[str]:
    """The names that a module reads of `config` or `self.config`, as attributes or with getattr."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute) and is_config(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and is_config(node.args[0]):
            found |= {each.value for each in node.args[1:2] if isinstance(each, ast.Constant)}
    return found


def is_config(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "config" and isinstance(node.value, ast.Name) and node.value.id == "self"
    return isinstance(node, ast.Name) and node.id == "config"


def used(family: Family, values: dict[str, Any]) -> set[str]:
    """What the family reads of these settings."""
    settings = Settings({**family.defaults, **with_aliases(family, values)}, "a file")
    family.read(settings, ())
    return settings.used


@pytest.mark.parametrize("name", FAMILIES)
def test_every_setting_that_transformers_reads_is_accounted_for(name: str) -> None:
    family, cls = families()[name], config_class(name)
    values = json.loads(cls().to_json_string(use_diff=False))
    values.pop("architectures", None)
    known = {*known_keys(family), *used(family, values), *METHODS, *ELSEWHERE.get(name, ())}
    known |= {name.partition(".")[2] for name in known}
    module = import_module(cls.__module__.replace(".configuration_", ".modeling_"))
    read = read_attributes(module) | {field.name for field in fields(cls)}
    for tower in family.towers:
        read |= {field.name for field in fields(type(getattr(cls(), tower)))}
    assert not {key for key in read - known if not key.startswith("_")}


def test_masks_and_positions_read_no_other_settings() -> None:
    """What all families share in transformers: a new key here concerns every table."""
    masks, positions = (import_module(f"transformers.{name}") for name in ("masking_utils", "modeling_rope_utils"))
    own = {"sliding_window", "attention_chunk_size", "is_causal"}
    assert read_attributes(masks) == {"_attn_implementation", "get_text_config", *own}
    own = {"rope_parameters", "hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings"}
    assert read_attributes(positions) == {"per_layer_config", "standardize_rope_params", "validate_rope", *own}


def test_an_alias_wins_over_the_name_of_the_family() -> None:
    family = families()["gpt2"]
    assert with_aliases(family, {"n_head": 2, "num_attention_heads": 4, "x": 1}) == {"n_head": 4, "x": 1}
    assert with_aliases(replace(family, aliases={}), {"num_attention_heads": 4}) == {"num_attention_heads": 4}


@pytest.mark.parametrize("name", FAMILIES)
def test_aliases_are_those_of_transformers(name: str) -> None:
    family, cls = families()[name], config_class(name)
    assert dict(family.aliases) == cls.attribute_map
