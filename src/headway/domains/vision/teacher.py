"""Another model that says what an image shows, for one that learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headway.domains.vision.use import processor_of
from headway.errors import UserError
from headway.formats.hub import named_folder
from headway.formats.open import open_model
from headway.nn.models import PatchEmbed, Transformer

HEAD = "classes"


class Teacher:
    """A model with the numbers that its classes have in the student, and how it wants its inputs."""

    def __init__(
        self, model: Transformer, order: Int[Tensor, "K"], size: tuple[int, int], mean: Tensor, std: Tensor
    ) -> None:
        self.model, self.order, self.size, self.mean, self.std = model.eval(), order, size, mean, std

    @staticmethod
    def open(path: str, labels: Sequence[str]) -> Teacher:
        """A run or a published model. UserError for one that sees no images, or does not know the student's classes."""
        opened = open_model(named_folder(path))
        model = cast(Transformer, opened.model)
        if not isinstance(getattr(model, "embed", None), PatchEmbed) or HEAD not in model.heads:
            raise UserError(f"the teacher {path} is not a classifier of images; give one with task.teacher")
        known = opened.usage.labels
        unknown = next((label for label in labels if label not in known), None)
        if unknown is not None:
            raise UserError(
                f"the teacher {path} has no class {unknown!r}; give one that was trained on the same classes"
            )
        processor = processor_of(opened.usage, path)
        embed = cast(PatchEmbed, model.embed).config
        mean, std = (
            torch.tensor(each or (default,) * embed.channels).float().view(1, -1, 1, 1)
            for each, default in ((processor.mean, 0.0), (processor.std, 1.0))
        )
        order = torch.tensor([known.index(label) for label in labels])
        return Teacher(model, order, processor.shape or embed.size, mean, std)

    @torch.no_grad()
    def classes(self, x: Float[Tensor, "B C H W"], mean: Tensor, std: Tensor) -> Int[Tensor, "B"]:
        """The student's number of the class that the teacher names for inputs that were normalised by `mean` and `std`:
        it sees the same images, changed as they are, in its own size.
        """
        self.model.to(x.device)
        pixels = x * std.to(x.device) + mean.to(x.device)
        if pixels.shape[1] != self.mean.shape[1]:
            pixels = pixels.mean(1, keepdim=True).expand(-1, self.mean.shape[1], -1, -1)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        said = self.model.output(HEAD, (pixels - self.mean.to(x.device)) / self.std.to(x.device))
        return said[:, self.order.to(x.device)].argmax(-1)
