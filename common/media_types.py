"""Images and sounds told by their first bytes, never by their names.

Knows the formats that workers decode (Pillow's and libsndfile's), and nothing of decoding.
"""

from collections.abc import Mapping

#: What Git LFS leaves in the place of a file that was not fetched begins with this.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: Bytes that `detect_format` wants to see.
HEAD_BYTES = 16

#: Kind to format to what a file of it begins with; `?` stands for any byte.
_MAGIC: Mapping[str, Mapping[str, tuple[bytes, ...]]] = {
    "image": {
        "JPEG": (b"\xff\xd8\xff",),
        "PNG": (b"\x89PNG\r\n\x1a\n",),
        "GIF": (b"GIF87a", b"GIF89a"),
        "WEBP": (b"RIFF????WEBP",),
        "BMP": (b"BM",),
        "TIFF": (b"II*\0", b"MM\0*"),
    },
    "audio": {
        "WAV": (b"RIFF????WAVE", b"RF64????WAVE"),
        "FLAC": (b"fLaC",),
        "OGG": (b"OggS",),
        "AIFF": (b"FORM????AIFF", b"FORM????AIFC"),
        "MP3": (b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"),
    },
}
#: Kind to the endings by which files are found in a directory.
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".mp3"),
}


def formats(kind: str) -> str:
    """Return the formats of `kind` (`image`, `audio`) in words."""
    return ", ".join(_MAGIC[kind])


def detect_format(kind: str, head: bytes) -> str | None:
    """Return the format of an image or a sound that begins with `head`, None if it is none that is known."""
    for name, beginnings in _MAGIC[kind].items():
        if any(_matches(head, beginning) for beginning in beginnings):
            return name
    return None


def _matches(head: bytes, beginning: bytes) -> bool:
    wild = ord("?")
    return len(head) >= len(beginning) and all(
        byte in (wild, found) for byte, found in zip(beginning, head, strict=False)
    )
