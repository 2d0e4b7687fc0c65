"""Bytes of sounds, untrusted, to samples at a model's rate; decoded by libsndfile, without a process of its own."""

import io
from fractions import Fraction
from typing import Any

import numpy as np
import soundfile
from scipy.signal import resample_poly

from common.errors import RecordError
from common.media_types import HEAD_BYTES, detect_format, formats

#: Samples of all channels in one sound at most, 512 MiB once decoded: more than two hours at 16 kHz.
MAX_SAMPLES = 2**27
#: Sample rates that are resampled, in Hz; nothing that records sound has others.
_RATES = (100, 1_000_000)
#: The filter of a resampling is about twenty times as long as its factors. With this bound the rate is off by less than
#: one in 40,000, and the filter of an odd rate does not fill the memory.
_LARGEST_FACTOR = 20_000


def decode_audio(blob: bytes, rate: int) -> Any:
    """Return the sound as float32 samples of shape (samples,), its channels averaged, at `rate` per second.

    Raises:
        RecordError: `bad_audio`, it is none, is damaged, empty, or too long.
    """
    if detect_format("audio", blob[:HEAD_BYTES]) is None:
        raise RecordError("bad_audio", f"The file is no sound by its first bytes; expected one of {formats('audio')}.")
    try:
        with soundfile.SoundFile(io.BytesIO(blob)) as file:
            own = int(file.samplerate)
            if file.frames * file.channels > MAX_SAMPLES:
                raise RecordError("bad_audio", f"The sound is too long: more than {MAX_SAMPLES:,} samples; cut it.")
            samples = file.read(frames=MAX_SAMPLES // file.channels, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
        raise RecordError("bad_audio", f"The sound cannot be decoded: {error}"[:1000]) from error
    if not len(samples):
        raise RecordError("bad_audio", "The sound is empty.")
    return samples if own == rate else _resampled(samples, own, rate)


def _resampled(samples: Any, own: int, rate: int) -> Any:
    if not _RATES[0] <= own <= _RATES[1]:
        told = f"The sound has a sample rate of {own:,} Hz; expected {_RATES[0]:,} to {_RATES[1]:,} Hz."
        raise RecordError("bad_audio", told)
    if len(samples) * rate // own > MAX_SAMPLES:
        raise RecordError("bad_audio", f"The sound is too long: more than {MAX_SAMPLES:,} samples at {rate:,} Hz.")
    ratio = Fraction(rate, own).limit_denominator(_LARGEST_FACTOR)
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)
