"""Number formats of the weights of models that generate on torch: fp32 or bf16."""

from __future__ import annotations

import torch
from torch import nn

from headway.formats.native import parameter_of, replace_parameters
from headway.nn.mixers.attention import SelfAttention
from headway.nn.mixers.cross import CrossAttention
from headway.nn.models.embeds import TokenEmbed
from headway.nn.models.heads import VocabularyHead
from headway.nn.parts.experts import Experts
from headway.nn.parts.feedforward import MLP, Gated
from headway.nn.parts.joint_experts import stacked
from headway.nn.parts.projection import Projection

_LAYERS = (SelfAttention, CrossAttention, MLP, Gated, VocabularyHead)


def matrices_of_layers(model: nn.Module) -> dict[int, nn.Parameter]:
    """The matrices of attention, feed-forward layers, token tables and heads to a vocabulary, by id.

    Those of recurrences and routers are left out: there, an error changes all later tokens or the chosen experts.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    projections = [part for layer in layers for part in layer.children() if isinstance(part, Projection)]
    tables = [module.table for module in model.modules() if isinstance(module, TokenEmbed)]
    return {id(matrix): matrix for matrix in (*tables, *(part.weight for part in projections))}


@torch.no_grad()
def store_in_bf16(model: nn.Module) -> None:
    """Round the matrices of layers to bf16, in place, for inference; all other weights become fp32.

    Products accumulate in fp32; norms, softmax, the sums between layers and logits are in fp32.
    """
    matrices = matrices_of_layers(model).items()
    others = {key: parameter_of(matrix.bfloat16()) for key, matrix in matrices if matrix.dtype != torch.bfloat16}
    replace_parameters(model, others)
    for parameter in model.parameters():
        if parameter.dtype != torch.bfloat16:
            parameter.data = parameter.data.float()


@torch.no_grad()
def join_experts(model: nn.Module) -> None:
    """Make the matrices of each mixture's experts parts of one tensor, so that no step copies them.

    For inference, when the model is on its device.
    """
    for mixture in [module for module in model.modules() if isinstance(module, Experts)]:
        for name, part in mixture.experts[0].named_children():
            if isinstance(part, Projection) and not part.is_hooked:
                joint = stacked(mixture.experts, name)
                for number, expert in enumerate(mixture.experts):
                    getattr(expert, name).weight = parameter_of(joint[number])
                part.__dict__["joint"] = joint
