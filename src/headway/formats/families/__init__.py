"""Published families, one file of rules each, looked up by the `model_type` of a config.json.

A family is a module here with a constant FAMILY, or FAMILIES if several share their rules.
"""

from __future__ import annotations

import pkgutil
from dataclasses import replace
from functools import cache
from importlib import import_module

from headway.errors import UserError, nearest
from headway.formats.lerobot import POLICIES
from headway.formats.settings import Settings
from headway.formats.tensor_rules import Family


@cache
def families() -> dict[str, Family]:
    """Return all families by model_type, in the order in which an export tries them: EuroBERT before Llama, whose
    classes can also attend in both directions; GLM, which could express other families' models, last.
    """
    by_name: dict[str, Family] = {}
    order = {"eurobert": 0, "llama": 1, "glm": 3}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda part: order.get(part.name, 2)):
        part = import_module(f"{__name__}.{module.name}")
        for family in getattr(part, "FAMILIES", None) or (part.FAMILY,):
            by_name[family.name] = family
    return by_name


# Models of images and texts of which only the text part can be used: their model_type, and that of the part.
TEXT_PARTS = {"gemma3": "gemma3_text", "mistral3": "mistral"}
_LANGUAGE_MODEL, _OTHER_PARTS = r"^(model\.)?language_model\.", r"^(model\.)?(vision_tower|multi_modal_projector)\."


def text_part(settings: Settings) -> Settings:
    """Return the settings of the text part of a model of images and texts; those of other models are unchanged."""
    kind = str(settings.values.get("model_type"))
    if kind not in TEXT_PARTS:
        return settings
    part = settings.part("text_config")
    outer = {name: value for name, value in settings.values.items() if name.endswith("_token_id")}
    outer["tie_word_embeddings"] = settings.get("tie_word_embeddings", bool, True)
    outer["final_logit_softcapping"] = None  # which the classes of these models do not use
    return replace(part, values={"model_type": TEXT_PARTS[kind], **part.values, **outer})


def find_family(settings: Settings) -> Family:
    """Return the family of a config.json. Raises UserError for an unknown one, listing the known ones."""
    known = families()
    if str(settings.values.get("model_type")) in TEXT_PARTS:
        family = find_family(text_part(settings))
        renames = ((_LANGUAGE_MODEL, r"\1"), *family.renames)
        return replace(family, renames=renames, skipped=(_OTHER_PARTS, *family.skipped))
    if "model_type" not in settings and "type" in settings:  # LeRobot's name for it
        name = settings.get("type", str)
        if name not in POLICIES:
            raise UserError(
                f"{settings.source}: policies of type {name!r} are not supported; use {' or '.join(POLICIES)}"
            )
        return known[name]
    name = settings.get("model_type", str)
    if name not in known:
        listed = ", ".join(sorted(known))
        raise UserError(f"{settings.source}: unknown family {name!r}; {nearest(name, known)} (known: {listed})")
    return known[name]
