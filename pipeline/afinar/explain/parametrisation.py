"""Pictures as parameters of an optimisation, and random transforms of them.

The Fourier parametrisation and the transforms are those of Lucid (Olah, Mordvintsev and Schubert
2017, "Feature Visualization", distill.pub/2017/feature-visualization): a spectrum whose low
frequencies are scaled up as 1/f, and colours that are decorrelated as those of ImageNet's pictures
are. The total-variation prior is that of Mahendran and Vedaldi 2015 (arXiv 1412.0035).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

# Square root of the covariance of colours of ImageNet's pixels, from Lucid (Apache-2.0).
_COLOURS: Final = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_SPECTRUM_STD: Final = 0.01
# Lucid draws 128 pixels for a network of 224. The frequencies above are those that a network turns
# into patterns of single pixels: at full resolution the variation is nearly that of noise.
_DRAWN_SHARE: Final = 128 / 224
_PAD_PX, _FIRST_JITTER_PX, _LAST_JITTER_PX = 12, 8, 4
_SCALES: Final = torch.linspace(0.9, 1.1, 11)
_DEGREES: Final = 10
_TRANSFORMED_AT: Final = 224  # pixels of the side that the transforms' pixels are meant for
_TV_JITTER_PX: Final = 8
_OCTAVES: Final = (1 / 1.96, 1 / 1.4, 1.0)  # sides of the picture, in turn
_TV_WEIGHT: Final = 8.0


class Parametrisation(ABC):
    """A picture [1, size, size, 3] of 0 to 255 as a function of parameters."""

    learning_rate: float = 0.05

    @abstractmethod
    def parameters(self) -> list[Tensor]:
        """Tensors to optimise."""

    @abstractmethod
    def picture(self) -> Tensor:
        """Return the picture, differentiable."""

    def transformed(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """Return the picture as the network sees it at one step."""
        del generator
        return picture

    def penalty(self, picture: Tensor) -> Tensor:
        """Return a loss that is added to the negative score."""
        return picture.new_zeros(())

    def advance(self, done: float) -> bool:
        """Change the parameters when a share `done` of the steps is over; True if they are new."""
        del done
        return False


class FourierPicture(Parametrisation):
    """Spectrum with decorrelated colours; shifts, scales and rotations at each step."""

    def __init__(self, size: int, generator: torch.Generator, device: torch.device) -> None:
        drawn = max(8, round(_DRAWN_SHARE * size))
        shape = (3, drawn, drawn // 2 + 1, 2)
        spectrum = _SPECTRUM_STD * torch.randn(shape, generator=generator)
        self._spectrum = spectrum.to(device).requires_grad_(True)
        rows, columns = torch.fft.fftfreq(drawn), torch.fft.rfftfreq(drawn)
        frequency = (rows[:, None] ** 2 + columns[None] ** 2).sqrt().clamp(min=1 / drawn)
        self._scale = (drawn / frequency).to(device)
        self._colours = (_COLOURS / _COLOURS.norm(dim=0).max()).T.to(device)
        self._drawn, self._size = drawn, size

    def parameters(self) -> list[Tensor]:
        return [self._spectrum]

    def picture(self) -> Tensor:
        spectrum = torch.view_as_complex(self._spectrum) * self._scale
        decorrelated = torch.fft.irfft2(spectrum, s=(self._drawn, self._drawn)) / 4
        colours = decorrelated.permute(1, 2, 0) @ self._colours
        image = 255 * colours.sigmoid().permute(2, 0, 1)[None]
        size = (self._size, self._size)
        image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        return image.permute(0, 2, 3, 1)

    def transformed(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        """Pad by 12, shift by up to 8, scale by 0.9 to 1.1, rotate by up to 10°, shift by 4.

        These pixels are meant for a side of 224 and grow with the picture. Scale and rotation are
        one bilinear sampling.
        """
        unit = picture.shape[1] / _TRANSFORMED_AT
        pad, first, last = (
            max(1, round(unit * px)) for px in (_PAD_PX, _FIRST_JITTER_PX, _LAST_JITTER_PX)
        )
        image = F.pad(picture.permute(0, 3, 1, 2), (pad, pad, pad, pad), value=127.5)
        image = _shifted(image, first, generator)
        scale = _SCALES[int(torch.randint(len(_SCALES), (), generator=generator))]
        degrees = int(torch.randint(-_DEGREES, _DEGREES + 1, (), generator=generator))
        image = _rotated(image, float(scale), math.radians(degrees))
        image = _shifted(image, last, generator)
        return _centre(image, picture.shape[1]).permute(0, 2, 3, 1)


class PixelPicture(Parametrisation):
    """Pixels, as in the naive method: any noise that raises the score is found."""

    def __init__(self, size: int, generator: torch.Generator, device: torch.device) -> None:
        self.size = size
        self._pixels = self._noise(size, generator, device)

    @staticmethod
    def _noise(size: int, generator: torch.Generator, device: torch.device) -> Tensor:
        noise = 0.01 * torch.randn((1, 3, size, size), generator=generator)
        return noise.to(device).requires_grad_(True)

    def parameters(self) -> list[Tensor]:
        return [self._pixels]

    def picture(self) -> Tensor:
        image = 255 * self._pixels.sigmoid()
        if image.shape[-1] != self.size:
            size = (self.size, self.size)
            image = F.interpolate(image, size, mode="bilinear", align_corners=False)
        return image.permute(0, 2, 3, 1)


class SmoothPicture(PixelPicture):
    """Pixels with a loss on their variation, random shifts, and octaves: the method of courses.

    The picture is optimised at half of its side, then at seven tenths, then at its own.
    """

    def __init__(self, size: int, generator: torch.Generator, device: torch.device) -> None:
        super().__init__(max(8, round(size * _OCTAVES[0])), generator, device)
        self.size, self._octave = size, 0

    def transformed(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        shift = torch.randint(-_TV_JITTER_PX, _TV_JITTER_PX + 1, (2,), generator=generator)
        return picture.roll((int(shift[0]), int(shift[1])), dims=(1, 2))

    def penalty(self, picture: Tensor) -> Tensor:
        values = picture / 255
        across = (values[:, :, 1:] - values[:, :, :-1]).abs().mean()
        return _TV_WEIGHT * 100 * (across + (values[:, 1:] - values[:, :-1]).abs().mean()) / 2

    def advance(self, done: float) -> bool:
        octave = min(int(done * len(_OCTAVES)), len(_OCTAVES) - 1)
        if octave == self._octave:
            return False
        self._octave = octave
        side = max(8, round(self.size * _OCTAVES[octave]))
        enlarged = F.interpolate(
            self._pixels.detach(), (side, side), mode="bilinear", align_corners=False
        )
        self._pixels = enlarged.requires_grad_(True)
        return True


def parametrise(
    prior: str, size: int, generator: torch.Generator, device: torch.device
) -> Parametrisation:
    """Return the parametrisation of a prior: `fourier`, `tv` or `none`."""
    if prior == "fourier":
        return FourierPicture(size, generator, device)
    return (SmoothPicture if prior == "tv" else PixelPicture)(size, generator, device)


def _shifted(image: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Return a random crop that is `pixels` smaller."""
    top, left = torch.randint(0, pixels + 1, (2,), generator=generator).tolist()
    size = image.shape[-1] - pixels
    return image[..., top : top + size, left : left + size]


def _rotated(image: Tensor, scale: float, angle: float) -> Tensor:
    """Return an enlarged and rotated picture of the same size, grey where nothing is known."""
    cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = image.new_tensor([[[cosine, -sine, 0.0], [sine, cosine, 0.0]]])
    places = F.affine_grid(matrix, list(image.shape), align_corners=False)
    return F.grid_sample(image - 127.5, places, align_corners=False) + 127.5


def _centre(image: Tensor, size: int) -> Tensor:
    """Return the middle of a picture, which grey surrounds where it is too small."""
    missing = max(0, size - image.shape[-1])
    if missing:
        before = missing // 2
        image = F.pad(image, (before, missing - before) * 2, value=127.5)
    start = (image.shape[-1] - size) // 2
    return image[..., start : start + size, start : start + size]
