"""Kernels: each a plain reference beside a fast form with the same signature."""

from headway.nn.kernels.attend import (
    View,
    additive,
    attend,
    attend_reference,
    recorder,
    recording,
    rotate,
    rotate_reference,
    rough_attention,
)
from headway.nn.kernels.convolution import convolve, convolve_reference
from headway.nn.kernels.cross_entropy import IGNORED, linear_cross_entropy, linear_cross_entropy_reference
from headway.nn.kernels.delta import delta, delta_quadratic, delta_reference
from headway.nn.kernels.linear import Products, deterministic, is_deterministic, linear, products
from headway.nn.kernels.linear_scan import linear_scan, linear_scan_quadratic, linear_scan_reference
from headway.nn.kernels.links import links, links_reference
from headway.nn.kernels.pointwise import (
    gelu_tanh,
    gelu_tanh_reference,
    pointwise,
    relu_squared,
    relu_squared_reference,
    rms_norm,
    rms_norm_reference,
)
from headway.nn.kernels.scan import (
    ElmanWeights,
    GRUWeights,
    LSTMWeights,
    RunSteps,
    elman,
    elman_reference,
    gru,
    gru_reference,
    lstm,
    lstm_reference,
    unroll,
)

__all__ = [
    "IGNORED",
    "ElmanWeights",
    "GRUWeights",
    "LSTMWeights",
    "Products",
    "RunSteps",
    "View",
    "additive",
    "attend",
    "attend_reference",
    "convolve",
    "convolve_reference",
    "delta",
    "delta_quadratic",
    "delta_reference",
    "deterministic",
    "elman",
    "elman_reference",
    "gelu_tanh",
    "gelu_tanh_reference",
    "gru",
    "gru_reference",
    "is_deterministic",
    "linear",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "linear_scan",
    "linear_scan_quadratic",
    "linear_scan_reference",
    "links",
    "links_reference",
    "lstm",
    "lstm_reference",
    "pointwise",
    "products",
    "recorder",
    "recording",
    "relu_squared",
    "relu_squared_reference",
    "rms_norm",
    "rms_norm_reference",
    "rotate",
    "rotate_reference",
    "rough_attention",
    "unroll",
]
