"""Media types: the formats of images, audio and video that workers decode, detected by their first bytes."""

from collections.abc import Mapping

#: The beginning of a Git LFS pointer, which replaces a file that was not downloaded.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

#: Bytes that `detect_format` needs.
HEAD_BYTES = 16

#: Media kind to format to the beginnings of its files; `?` matches any byte.
_MAGIC: Mapping[str, Mapping[str, tuple[bytes, ...]]] = {
    "image": {
        "JPEG": (b"\xff\xd8\xff",),
        "PNG": (b"\x89PNG\r\n\x1a\n",),
        "GIF": (b"GIF87a", b"GIF89a"),
        "WEBP": (b"RIFF????WEBP",),
        "BMP": (b"BM",),
        "TIFF": (b"II*\0", b"MM\0*"),
    },
    "video": {
        "MP4": (b"????ftyp",),
        "WEBM": (b"\x1aE\xdf\xa3",),
        "AVI": (b"RIFF????AVI ",),
        "MPEG": (b"\0\0\x01\xba", b"\0\0\x01\xb3"),
    },
    "audio": {
        "WAV": (b"RIFF????WAVE", b"RF64????WAVE"),
        "FLAC": (b"fLaC",),
        "OGG": (b"OggS",),
        "AIFF": (b"FORM????AIFF", b"FORM????AIFC"),
        "MP3": (b"ID3", b"\xff\xfb", b"\xff\xfa", b"\xff\xf3", b"\xff\xf2", b"\xff\xe3", b"\xff\xe2"),
    },
}
#: Media kind to the suffixes by which files are found in a directory.
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "video": (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg"),
    "image": (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    "audio": (".wav", ".flac", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".mp3"),
}


def formats(kind: str) -> str:
    """Return the names of the formats of `kind` (`image`, `audio`, `video`)."""
    return ", ".join(_MAGIC[kind])


def detect_format(kind: str, head: bytes) -> str | None:
    """Return the format of a file that begins with `head`, None if it is not a known one."""
    for name, beginnings in _MAGIC[kind].items():
        if any(_matches(head, beginning) for beginning in beginnings):
            return name
    return None


def _matches(head: bytes, beginning: bytes) -> bool:
    wild = ord("?")
    return len(head) >= len(beginning) and all(
        byte in (wild, found) for byte, found in zip(beginning, head, strict=False)
    )
