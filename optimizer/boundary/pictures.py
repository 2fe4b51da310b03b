"""The Python reference of preprocessing: what the operators in an artifact must agree with.

An image is opened by Pillow, converted to RGB (or to gray), and resized by Pillow's antialiased bilinear filter in
float32, channel by channel: the filter that training pipelines on Pillow images use, without its rounding to whole
levels. The shorter side becomes the size asked for, the longer one int(size * longer / shorter); the crop starts at the
rounded half of what is left over, halves to even: both as torchvision has them.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.boundary.text import Preprocess
from optimizer.faults import Fault, bad_input, cannot

Array = np.ndarray[Any, Any]

MOST_PIXELS = 180_000_000
"""An image of more is taken for a bomb: files of a few kilobytes can unfold to any size."""


def open_pixels(source: Path | bytes, channels: int) -> Array:
    """The pixels of an image file: uint8 [H, W, channels], 1 (gray) or 3 (RGB). Orientation tags are not followed.

    Raises :class:`~optimizer.faults.Fault`: bad input when it is no image, exit 4 when Pillow is missing.
    """
    image_module = pillow()
    where = str(source) if isinstance(source, Path) else ""
    try:
        with image_module.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > MOST_PIXELS:
                raise bad_input(f"the image has {image.width} x {image.height} pixels", where=where, code="unsafe-data")
            if image.mode.startswith(("I", "F")):  # converted, whatever is brighter than 255 would be white
                raise bad_input(
                    f"the image has more than 8 bits per channel (Pillow's mode {image.mode})",
                    where=where,
                    hint="Save it with 8 bits per channel",
                    code="bad-data",
                )
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Fault:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        text = " ".join(str(error).split())[:120]
        raise bad_input(f"cannot be read as an image: {text}", where=where, code="bad-data") from None
    return pixels.reshape(*pixels.shape[:2], channels)


def why_decoded_otherwise(source: Path) -> str:
    """Why the decoder inside of a graph does not give the pixels of a file, or nothing when it does.

    onnxruntime-extensions repeats subsampled chroma where libjpeg, as Pillow and OpenCV use it, interpolates.
    """
    image_module = pillow()
    from PIL.JpegImagePlugin import get_sampling

    try:
        with image_module.open(source) as image:
            if image.format == "PNG":
                return ""
            if image.format != "JPEG":
                return f"it reads PNG and JPEG, and this is {image.format}"
            if image.mode == "L" or (image.mode == "RGB" and get_sampling(image) == 0):
                return ""
            return f"this JPEG is {'subsampled' if image.mode == 'RGB' else image.mode}"
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged files
        return f"it is no image ({' '.join(str(error).split())[:120]})"


def apply(steps: Preprocess, pixels: Array, *, channels_first: bool) -> Array:
    """``pixels`` (uint8 [H, W, C]) as the network takes them: float32 [C, H, W], or [H, W, C]."""
    if steps.gray and pixels.shape[2] == 3:
        pixels = np.asarray(pillow().fromarray(pixels).convert("L"))[..., None]
    found: Array = pixels.astype(np.float32)
    size = target_size(steps, pixels.shape[0], pixels.shape[1])
    if size != pixels.shape[:2]:
        found = resized(found, size)
    if steps.crop is not None:
        top, left = (round((have - want) / 2.0) for have, want in zip(size, steps.crop, strict=True))
        found = found[top : top + steps.crop[0], left : left + steps.crop[1]]
    if steps.bgr:
        found = found[..., ::-1]
    if steps.factor is not None:
        found = found * np.float32(steps.factor)
    if steps.mean:
        found = (found - np.asarray(steps.mean, np.float32)) / np.asarray(steps.std, np.float32)
    return np.ascontiguousarray(found.transpose(2, 0, 1) if channels_first else found, np.float32)


def target_size(steps: Preprocess, height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing."""
    if steps.size is not None:
        return steps.size
    if steps.shorter is None:
        return height, width
    short = min(height, width)
    return steps.shorter * height // short, steps.shorter * width // short


def resized(image: Array, size: tuple[int, int]) -> Array:
    """``image`` float32 [H, W, C] at (height, width) by Pillow's antialiased bilinear filter, unrounded."""
    module = pillow()
    planes = [module.fromarray(np.ascontiguousarray(image[..., c]), mode="F") for c in range(image.shape[2])]
    return np.stack([np.asarray(p.resize(size[::-1], module.Resampling.BILINEAR)) for p in planes], axis=-1)


def pillow() -> Any:
    """Pillow's Image module. Raises a Fault that says how to install it."""
    try:
        from PIL import Image
    except ImportError:
        raise cannot("images need Pillow", hint="Run: pip install 'lathe[images]'", code="missing-package") from None
    return Image
