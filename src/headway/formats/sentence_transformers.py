"""Folders in the layout of sentence-transformers: modules after the transformer, prompts and limits, read and written.

modules.json lists the modules. Pooling pools the tokens of a text into a vector, Dense layers project it, and Normalize
scales it to unit length; together they are the head "embedding". LogitScore makes a reranker of a language model: its
score is the difference of two tokens' logits after the prompt, which is a head with one output.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headway.codecs import TokenizerCodec, published_codec
from headway.codecs.special_tokens import CONFIG_FILE
from headway.codecs.tokenizer_files import object_or_empty, read_object
from headway.errors import UserError
from headway.formats.settings import Settings
from headway.formats.tensor_rules import linear
from headway.formats.tensorfile import Shards, TensorFile, write_tensors
from headway.formats.torch_file import TorchFile
from headway.formats.usage import CROSS_ENCODER, SentenceUsage
from headway.formats.weights import fill, published_tensors
from headway.io.durable import read_json, write_json
from headway.nn.models import ModelConfig, PooledHeadConfig, TransformerConfig, VocabularyHeadConfig
from headway.nn.models.pooled import Pool

MODULES, LIMITS, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
HEAD, RELEVANCE = "embedding", "classes"
_WEIGHTS = (("model.safetensors", TensorFile), ("pytorch_model.bin", TorchFile))  # the first that exists is read
_TYPES = "sentence_transformers.models."
_FOLDERS = ("Pooling", "Dense", "LogitScore")  # modules with files
_MAX_DENSE = 2  # dense layers of a head: one with an activation, then one without
_MAX_FEATURES = 1 << 20  # outputs of a dense layer
_MAX_LENGTH = 1 << 31  # tokenizers without a limit have a larger one
_POOLS: dict[str, Pool] = {
    "cls": "first",
    "mean": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_ACTIVATIONS = {  # classes of torch by our names
    "tanh": "torch.nn.modules.activation.Tanh",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "silu": "torch.nn.modules.activation.SiLU",
    None: "torch.nn.modules.linear.Identity",
}
TOKENS = "classifier_from_token"  # vLLM's setting in config.json: the tokens of a reranker for "no" and "yes"
_PAIR_ROLES = tuple(re.compile(rf"""["']{role}["']""") for role in ("query", "document"))
QWEN3_TEMPLATE = (  # the prompt of Qwen3-Reranker (Zhang et al. 2025, section 2)
    '{{ "<|im_start|>system\\nJudge whether the Document meets the requirements based on the Query and the Instruct '
    'provided. Note that the answer can only be \\"yes\\" or \\"no\\".<|im_end|>\\n<|im_start|>user\\n<Instruct>: " }}'
    "{% set given = messages | selectattr('role', 'eq', 'system') | list %}"
    "{{ given[0].content if given else 'Given a web search query, retrieve relevant passages that answer the query' }}"
    "{% for message in messages if message.role in ('query', 'document') %}"
    '{{ "\\n<" + message.role | capitalize + ">: " + message.content }}{% endfor %}'
    '{{ "<|im_end|>\\n<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n" }}'
)


class _Module(NamedTuple):
    kind: str
    folder: Path

    def settings(self) -> Settings:
        path = self.folder / "config.json"
        return Settings(read_object(path), str(path))


class SentenceModules(NamedTuple):
    """The modules in a folder's modules.json, in order."""

    directory: Path
    modules: list[_Module]


def read_modules(directory: Path) -> SentenceModules:
    """Return the modules of a folder; none without modules.json. UserError for a module's folder outside it."""
    path = directory / MODULES
    entries = read_json(path) if path.is_file() else []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} is not a list of modules; download it again")
    modules = []
    for settings in (Settings(entry, str(path)) for entry in entries):
        kind, folder = settings.get("type", str).rpartition(".")[2], settings.get("path", str)
        if kind in _FOLDERS and (Path(folder).name != folder or folder in ("", "..")):
            raise UserError(f"{path} has its {kind} in {folder!r}, which is not a subfolder; download it again")
        modules.append(_Module(kind, directory / folder))
    return SentenceModules(directory, modules)


def with_modules(config: ModelConfig, settings: Settings, folder: SentenceModules) -> ModelConfig:
    """Return `config` with the head that the folder's modules make; unchanged if they make none."""
    kinds, source = [module.kind for module in folder.modules], str(folder.directory / MODULES)
    if not isinstance(config, TransformerConfig) or kinds in ([], ["Transformer"]):
        is_reranker = TOKENS in settings and settings.architecture.endswith("ForCausalLM")
        return _with_relevance(config, settings.source) if is_reranker else config
    if kinds == ["Transformer", "LogitScore"]:
        return _with_relevance(config, source)
    dense, unit = kinds.count("Dense"), kinds[-1] == "Normalize"
    if kinds != ["Transformer", "Pooling"] + ["Dense"] * dense + ["Normalize"] * unit or dense > _MAX_DENSE:
        raise UserError(
            f"{source} lists {', '.join(kinds)}, which is not supported; it may be Transformer, Pooling, "
            f"up to {_MAX_DENSE} Dense and Normalize, or Transformer and LogitScore"
        )
    head = PooledHeadConfig(pool=_read_pooling(folder.modules[1].settings()), unit=unit)
    for module in folder.modules[2 : 2 + dense]:
        head = _with_dense(head, module.settings(), config.width)
    return replace(config, heads={**config.heads, HEAD: head})


def _read_pooling(settings: Settings) -> Pool:
    values = settings.values
    flags = [name for name, value in values.items() if name.startswith("pooling_mode_") and value is True]
    modes = [str(values["pooling_mode"])] if "pooling_mode" in values else [_FLAGS.get(flag, flag) for flag in flags]
    if len(modes) != 1 or len(flags) > 1 or modes[0] not in _POOLS:
        raise UserError(
            f"{settings.source} pools by {', '.join(flags or modes) or 'nothing'}, which is not supported; "
            f"it may be one of {', '.join(_POOLS)}"
        )
    return _POOLS[modes[0]]


def _with_dense(head: PooledHeadConfig, settings: Settings, width: int) -> PooledHeadConfig:
    """Return `head` with one more layer; the second has no activation."""
    inputs, outputs, bias = (
        settings.get("in_features", int),
        settings.get("out_features", int),
        settings.get("bias", bool, True),
    )
    names = {name: activation for activation, name in _ACTIVATIONS.items() if activation is None or not head.dense}
    activation: Any = names.get(settings.get("activation_function", str))
    settings.require("activation_function", *names)
    for name in ("module_input_name", "module_output_name"):
        settings.require(name, "sentence_embedding")
    if inputs != (head.dense_size or width) or not 1 <= outputs <= _MAX_FEATURES:
        raise UserError(
            f"{settings.source} maps {inputs} features to {outputs}; it should map {head.dense_size or width} to 1 to "
            f"{_MAX_FEATURES:,}"
        )
    if head.dense:
        return replace(head, outputs=outputs, bias=bias)
    return replace(head, dense=True, dense_size=outputs, dense_bias=bias, activation=activation)


def _with_relevance(config: ModelConfig, source: str) -> TransformerConfig:
    """Return `config`, a language model's, with a head that predicts a document's relevance from the last token."""
    if not isinstance(config, TransformerConfig) or config.heads != {"vocabulary": VocabularyHeadConfig()}:
        raise UserError(f"{source} scores tokens, but the model has no plain vocabulary head; use another reranker")
    return replace(config, heads={RELEVANCE: PooledHeadConfig(1, "last", bias=False)}, tie="none")


@torch.no_grad()
def attach_modules(
    model: nn.Module, config: ModelConfig, settings: Settings, folder: SentenceModules, dtype: Any
) -> None:
    """Give a filled `model` the head that `config` has from `with_modules`, with its weights from the folder."""
    model_config: Any = model.config
    if config == model_config or not isinstance(config, TransformerConfig):
        return
    heads: Any = model.heads
    if HEAD in config.heads:
        with torch.device("meta"):  # sizes are checked before memory is allocated
            head = heads[HEAD] = config.heads[HEAD].build(config.width, config.vocab_size, None)
        paths = [module.folder for module in folder.modules if module.kind == "Dense"]
        for path, layer in zip(paths, (head.dense, head.project)):
            files = [(path / name, opener) for name, opener in _WEIGHTS if (path / name).is_file()]
            if not files:
                raise UserError(f"{path} contains none of {', '.join(dict(_WEIGHTS))}; download it again")
            shards = Shards([files[0][0]], str(path), files[0][1])
            fill(
                nn.ModuleDict({"linear": layer}), linear("linear", "linear", bias=layer.bias is not None), shards, dtype
            )
    else:
        table = heads["vocabulary"].weight
        relevant, irrelevant = _relevance_tokens(settings, folder, len(table))
        vector = table[relevant] if irrelevant is None else table[relevant] - table[irrelevant]
        head: Any = config.heads[RELEVANCE].build(config.width, config.vocab_size, None)
        head.project.weight = nn.Parameter(vector[None].clone())
        model.heads = nn.ModuleDict({RELEVANCE: head})
    model.config = config  # type: ignore[assignment]


def _relevance_tokens(settings: Settings, folder: SentenceModules, count: int) -> tuple[int, int | None]:
    """Return the token for a relevant document and, if there is one, for an irrelevant document."""
    score = next((module.settings() for module in folder.modules if module.kind == "LogitScore"), None)
    if score is not None:
        source, ids = score.source, [score.get("true_token_id", int), score.optional("false_token_id", int)]
    else:
        source, codec = f"{settings.source}: {TOKENS}", published_codec(folder.directory)
        names = settings.get(TOKENS, list[str])
        if len(names) != 2 or not isinstance(codec, TokenizerCodec):
            raise UserError(f"{source} is {names}; it should be two tokens of tokenizer.json")
        ids = [codec.token_id(name) for name in reversed(names)]
        if None in ids:
            raise UserError(f"{source} is {names}, which are not both tokens of the tokenizer; correct them")
    if not all(0 <= token < count for token in ids if token is not None):
        raise UserError(f"{source} are the tokens {ids} of a vocabulary with {count}; download the model again")
    return ids[0] or 0, ids[1]


def formats_pairs(template: str | None) -> bool:
    """Whether a chat template formats a query and a document, by their roles."""
    return template is not None and all(role.search(template) for role in _PAIR_ROLES)


def reranker_template(
    template: str | None, config: ModelConfig, settings: Settings, folder: SentenceModules
) -> str | None:
    """Return a folder's chat template. A reranker that only names its tokens has the one of Qwen3-Reranker. UserError
    for a LogitScore without a template for queries and documents.
    """
    kinds = [module.kind for module in folder.modules]
    if RELEVANCE not in getattr(config, "heads", {}) or formats_pairs(template):
        return template
    if "LogitScore" in kinds:
        raise UserError(f"{folder.directory} has no chat template for a query and a document; download it again")
    return QWEN3_TEMPLATE if TOKENS in settings and settings.architecture.endswith("ForCausalLM") else template


def read_sentence_usage(folder: SentenceModules) -> SentenceUsage:
    """Return the prompts and limits of a folder with modules; the default without them."""
    directory, modules = folder
    if not modules:
        return SentenceUsage()
    prompts, limits = (Settings(object_or_empty(path), str(path)) for path in (directory / PROMPTS, directory / LIMITS))
    names, default = prompts.get("prompts", dict[str, str], {}), prompts.optional("default_prompt_name", str)
    if default is not None and default not in names:
        raise UserError(f"{prompts.source}: default_prompt_name is {default!r:.80}, which is not one of its prompts")
    max_length = limits.optional("max_seq_length", int)
    if max_length is None:  # as sentence-transformers does
        tokenizer_limit = object_or_empty(directory / CONFIG_FILE).get("model_max_length")
        is_limit = isinstance(tokenizer_limit, int) and tokenizer_limit < _MAX_LENGTH
        max_length = tokenizer_limit if is_limit else None
    if max_length is not None and max_length < 1:
        raise UserError(f"{limits.source}: max_seq_length is {max_length}; it should be at least 1")
    pooling = next((module.settings() for module in modules if module.kind == "Pooling"), None)
    return SentenceUsage(
        prompts=names,
        default_prompt=default,
        similarity=prompts.optional("similarity_fn_name", str),
        max_length=max_length,
        lowercase=limits.get("do_lower_case", bool, False),
        include_prompt=pooling is None or pooling.get("include_prompt", bool, True),
    )


def usage_settings(values: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a config.json's values with the activation of a cross-encoder that is stored next to it, and without the
    tokens of a language model that reranks, because it has become a classifier.
    """
    activation = object_or_empty(directory / PROMPTS).get("activation_fn")
    kept = {name: value for name, value in values.items() if name not in (TOKENS, "is_original_qwen3_reranker")}
    return kept if activation is None else {**kept, CROSS_ENCODER: {"activation_fn": activation}}


def check_embedding(config: ModelConfig) -> None:
    """UserError for a head "embedding" that the layout cannot express."""
    head = config.heads.get(HEAD) if isinstance(config, TransformerConfig) else None
    if head is None:
        return
    if isinstance(head, PooledHeadConfig) and head.pool in _POOLS.values():
        plain = PooledHeadConfig(pool=head.pool, unit=head.unit)
        if head.dense and head.activation in _ACTIVATIONS:
            fields = ("dense", "dense_size", "dense_bias", "activation", "outputs", "bias")
            plain = replace(plain, **{name: getattr(head, name) for name in fields})
        if replace(head, dropout=0.0) == plain:
            return
    raise UserError(
        f"the head {HEAD!r} is {head}, which the layout of sentence-transformers cannot express; pool by "
        f"{', '.join(_POOLS)}"
    )


def write_modules(model: nn.Module, config: ModelConfig, directory: Path, usage: SentenceUsage) -> None:
    """Write modules.json and its folders if `config` has the head "embedding", and the prompts if there are any."""
    if usage.prompts or usage.similarity:
        prompts = {"prompts": usage.prompts, "default_prompt_name": usage.default_prompt}
        write_json(directory / PROMPTS, {**prompts, "similarity_fn_name": usage.similarity})
    head = config.heads.get(HEAD) if isinstance(config, TransformerConfig) else None
    if not isinstance(config, TransformerConfig) or not isinstance(head, PooledHeadConfig):
        return
    built: Any = model.heads[HEAD]  # type: ignore[index]
    layers = [layer for layer in (built.dense, built.project) if not isinstance(layer, nn.Identity)]
    kinds = ["Transformer", "Pooling", *["Dense"] * len(layers), *(["Normalize"] if head.unit else [])]
    folders = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    module_list = [
        {"idx": number, "name": str(number), "path": folder, "type": _TYPES + kind}
        for number, (folder, kind) in enumerate(zip(folders, kinds))
    ]
    write_json(directory / MODULES, module_list)
    for folder in folders[1:]:
        (directory / folder).mkdir(exist_ok=True)
    pooling: dict[str, Any] = {flag: _POOLS[mode] == head.pool for flag, mode in _FLAGS.items()}
    pooling |= {"word_embedding_dimension": config.width, "include_prompt": usage.include_prompt}
    write_json(directory / folders[1] / "config.json", pooling)
    for folder, layer, activation in zip(folders[2:], layers, (head.activation, None)):
        outputs, inputs = layer.weight.shape
        dense = {"in_features": inputs, "out_features": outputs, "bias": layer.bias is not None}
        write_json(directory / folder / "config.json", {**dense, "activation_function": _ACTIVATIONS[activation]})
        rules = linear("linear", "linear", bias=layer.bias is not None)
        tensors = published_tensors(nn.ModuleDict({"linear": layer}), rules)
        write_tensors(directory / folder / _WEIGHTS[0][0], tensors, {"format": "pt"})
    max_length = config.context if usage.max_length is None else usage.max_length
    write_json(directory / LIMITS, {"max_seq_length": max_length, "do_lower_case": usage.lowercase})
