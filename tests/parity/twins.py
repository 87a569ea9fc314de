"""A model of transformers and what we make of its files, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from headway.formats.families import families
from headway.formats.published import load_published, open_shards, save_published
from headway.formats.usage import Usage
from headway.formats.weights import RenamedWeights, published_tensors
from headway.layout import Layout


class Twins(NamedTuple):
    theirs: Any  # a model of transformers
    ours: Any
    usage: Usage
    folder: Path  # where theirs was saved


class Batch(NamedTuple):
    """Rows of several lengths. `mask` is what transformers reads of the layout."""

    ids: Tensor
    mask: Tensor
    layout: Layout


def twins(theirs: Any, folder: Path, noise: float = 0.2, seed: int = 1) -> Twins:
    """`theirs` with every number moved, saved and loaded here."""
    perturb(theirs.eval(), noise, seed)
    theirs.save_pretrained(folder)
    return Twins(theirs, *load_published(folder), folder)


def perturb(model: nn.Module, noise: float, seed: int) -> None:
    """So that no norm is 1 and no bias 0. What is not trained (sinusoids) stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=noise, generator=generator)
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None:
            bias.normal_(generator=generator)


def batch(lengths: Sequence[int], symbols: int, pad: int = 0, low: int = 4, seed: int = 0) -> Batch:
    """Random symbols from `low` on, and `pad` after each row."""
    layout = Layout.padded(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, symbols, layout.positions.shape, generator=generator)
    return Batch(ids.masked_fill(~layout.mask, pad), layout.mask.long(), layout)


def rows(batch: Batch) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(batch.ids, batch.layout.lengths.tolist())]


def outputs_of(layers: Sequence[nn.Module], run: Callable[[], Any]) -> list[Tensor]:
    """What each of `layers` gives while `run()` is called, its first output where there are several."""
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, (tuple, list)) else output)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.inference_mode():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def difference(a: Tensor, b: Tensor, keep: Tensor | None = None) -> float:
    """The largest difference where there are tokens, in units of the largest value if that is above 1."""
    assert a.shape == b.shape
    a, b = (a, b) if keep is None else (a[keep], b[keep])
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))


def check_export(pair: Twins, again: Callable[[Path], Any], run: Callable[[Any], Tensor], folder: Path) -> None:
    """What we write, with what is known of its use and without, is theirs again bit for bit; `again` loads a folder."""
    with torch.inference_mode():
        wanted = run(pair.theirs)
        for name, usage in (("used", pair.usage), ("bare", None)):
            family = save_published(pair.ours, pair.ours.config, folder / name, usage)
            assert family == pair.theirs.config.model_type or usage is None
            back = again(folder / name).eval()
            state, saved = pair.theirs.state_dict(), back.state_dict()
            assert state.keys() == saved.keys()
            for key, tensor in state.items():
                assert torch.equal(tensor, saved[key]), f"{name}: {key}"
            assert difference(run(back), wanted) < 1e-5, name  # not 0: where a tensor lies moves its last bit


def check_gradients(pair: Twins, theirs: Callable[[Any], Tensor], ours: Callable[[Any], Tensor], folder: Path) -> None:
    """The gradients of all weights that transformers trains, of a random sum of the outputs, are theirs. `theirs` and
    `ours` are functions from a model to its outputs at the tokens.
    """
    peer, mine = deepcopy(pair.theirs), deepcopy(pair.ours)
    sum_randomly(theirs(peer)).backward()
    sum_randomly(ours(mine)).backward()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for buffer in peer.buffers():
            buffer.zero_()
    peer.save_pretrained(folder)
    family = families()[pair.usage.family]
    wanted, found = RenamedWeights(open_shards(folder), family), published_gradients(mine, pair.usage.family)
    assert set(found) <= set(wanted.names())
    constants = dict(peer.named_buffers())
    for name, gradient in found.items():
        assert name in constants or difference(wanted.get(name), gradient) < 1e-4, name
    assert any(gradient.any() for gradient in found.values())


def sum_randomly(outputs: Tensor) -> Tensor:
    """A sum whose gradient differs at each output, the same for outputs of one shape."""
    return (outputs * torch.randn(outputs.shape, generator=torch.Generator().manual_seed(3))).sum()


def published_gradients(model: Any, family: str) -> dict[str, Tensor]:
    """The gradients of our model under the names of its files; its weights are overwritten. Rules may add numbers to
    weights, which gradients do not have.
    """
    rules = families()[family].rules(model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        gradients = {name: tensor.clone() for name, tensor in published_tensors(model, rules).items()}
        for parameter in model.parameters():
            parameter.zero_()
        return {name: gradients[name] - tensor for name, tensor in published_tensors(model, rules).items()}
