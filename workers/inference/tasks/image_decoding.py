"""Bytes of images, untrusted, to what a pipeline takes; nothing is opened here but those bytes.

Only the formats that `common.media_types` knows are decoded: each further decoder is code that reads hostile bytes.
"""

import io
import warnings

from PIL import Image

from common.errors import RecordError
from common.media_types import HEAD_BYTES, detect_format, formats


def decode_image(blob: bytes) -> Image.Image:
    """Return the image, all of it decoded.

    Raises:
        RecordError: `bad_image`, it is none, is damaged, or has more pixels than Pillow holds for safe
            (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    found = detect_format("image", blob[:HEAD_BYTES])
    if found is None:
        raise RecordError("bad_image", f"The file is no image by its first bytes; expected one of {formats('image')}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(blob), formats=(found,))
            image.load()
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RecordError("bad_image", f"The image is too large: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # the boundary of untrusted bytes: decoders raise what they like
        raise RecordError("bad_image", f"The {found} image cannot be decoded: {error}"[:1000]) from error
    return image
