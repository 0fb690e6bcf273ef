"""Stored images as models see them: 8 bits a channel, grey or in colour."""

import numpy as np
from PIL import Image

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # whatever a file is called: PostScript is a program
Image.init()
ENDINGS = frozenset(ending for ending, format in Image.registered_extensions().items() if format in FORMATS)
MODES = {1: "L", 3: "RGB"}


def eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """An image in grey (1 channel) or colour (3); 16 bits are scaled, for Pillow would cut them off at 255.

    The first frame counts, and transparency is left out, as in timm and torchvision.

    Raises ValueError for pixels of 32 bits, of which nobody says what is white.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, dtype=np.uint16) / 257 + 0.5).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of 32 bits (mode {image.mode}), and nothing says which is white")
    elif "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # else Pillow warns of it
    return image.convert(MODES[channels])
