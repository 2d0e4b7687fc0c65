"""Bytes of sounds, untrusted, to samples at a model's rate; decoded by libsndfile, without a process of its own."""

import io
import math
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from common.errors import RecordError
from common.media import HEAD, format_of, formats

#: Samples of all channels in one sound at most, 512 MiB once decoded: more than two hours at 16 kHz.
MOST_SAMPLES = 2**27


def sound_of(blob: bytes, rate: int) -> Any:
    """Return the sound as float32 samples of shape (samples,), its channels averaged, at `rate` per second.

    Raises:
        RecordError: `bad_audio`, it is none, is damaged, empty, or too long.
    """
    if format_of("audio", blob[:HEAD]) is None:
        raise RecordError("bad_audio", f"The file is no sound by its first bytes; expected one of {formats('audio')}.")
    try:
        with soundfile.SoundFile(io.BytesIO(blob)) as file:
            own = int(file.samplerate)
            if file.frames * file.channels > MOST_SAMPLES:
                raise RecordError("bad_audio", f"The sound is too long: more than {MOST_SAMPLES:,} samples; cut it.")
            samples = file.read(frames=MOST_SAMPLES // file.channels, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise RecordError("bad_audio", f"The sound cannot be decoded: {error}"[:1000]) from error
    if not len(samples):
        raise RecordError("bad_audio", "The sound is empty.")
    if own == rate:
        return samples
    common = math.gcd(own, rate)
    return resample_poly(samples, rate // common, own // common).astype(np.float32)
