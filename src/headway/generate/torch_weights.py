"""Number formats of the weights of models that generate on torch: fp32 or bf16."""

from __future__ import annotations

import torch
from torch import nn

from headway.formats.native import parameter_of, replace_parameters
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.cross import CrossAttention
from headway.nn.models.embeds import TokenEmbed
from headway.nn.models.heads import VocabularyHead
from headway.nn.parts.feedforward import MLP, Gated
from headway.nn.parts.projection import Projection

_LAYERS = (SelfAttention, CrossAttention, MLP, Gated, VocabularyHead)


@torch.no_grad()
def store_in_bf16(model: nn.Module) -> None:
    """Round the matrices of attention, feed-forward layers, token tables and heads to bf16, in place, for inference.

    All other weights become fp32: those of recurrences and routers, too, where an error changes all later tokens or the
    chosen experts. Products accumulate in fp32; norms, softmax, the sums between layers and logits are in fp32.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    projections = [part for layer in layers for part in layer.children() if isinstance(part, Projection)]
    tables = [module.table for module in model.modules() if isinstance(module, TokenEmbed)]
    matrices = {id(matrix): matrix for matrix in (*tables, *(part.weight for part in projections))}
    replace_parameters(model, {key: parameter_of(matrix.bfloat16()) for key, matrix in matrices.items()})
    for parameter in model.parameters():
        if parameter.dtype != torch.bfloat16:
            parameter.data = parameter.data.float()
