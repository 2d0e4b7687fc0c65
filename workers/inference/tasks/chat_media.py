"""Images and audio in chat messages: bytes in base64 become what a processor takes. No address is ever opened."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import RecordError
from common.records import Json

#: Decodes the bytes of a file.
Decode = Callable[[bytes], Any]
#: The kind of each part that is not text, by the names that transformers and OpenAI's API have for it.
_KINDS = {"image": "image", "image_url": "image", "audio": "audio", "input_audio": "audio"}
#: Keys of a part that may hold its file, or an address of it.
_SOURCES = ("image", "audio", "image_url", "input_audio", "base64", "data", "url", "path")


@dataclass(frozen=True, slots=True)
class ChatMedia:
    """What the messages of a chat may hold besides text."""

    decoders: Mapping[str, Decode]  #: by kind; a kind without one is refused

    def place(self, messages: Sequence[Mapping[str, Json]], attached: Any = None) -> list[dict[str, Any]]:
        """Return the messages with their files decoded.

        Args:
            messages: each with `role` and `content`; untrusted.
            attached: the decoded image of the record. It replaces the part {"type": "image"} without a file of its
                own; if there is none, it comes first in the first message of the user.

        Raises:
            RecordError: `wrong_type`, a part is of another form; `missing_file`, a part names an address;
                `missing_field`, an image is nowhere; what a decoder raises.
        """
        blanks: list[dict[str, Any]] = []
        placed = [{**message, "content": self._content(message.get("content"), blanks)} for message in messages]
        if len(blanks) > (attached is not None):
            raise RecordError(
                "missing_field",
                f'messages have {len(blanks)} images {{"type": "image"}} without a file of their own, and the record '
                f"has {'one' if attached is not None else 'none'} in its field image.",
            )
        if blanks:
            blanks[0]["image"] = attached
        elif attached is not None:
            _put_first(placed, {"type": "image", "image": attached})
        return placed

    def _content(self, content: Json, blanks: list[dict[str, Any]]) -> Any:
        if not isinstance(content, list):
            return content
        return [self._part(part, blanks) for part in content]

    def _part(self, part: Json, blanks: list[dict[str, Any]]) -> dict[str, Any]:
        if not isinstance(part, dict):
            raise RecordError("wrong_type", f"A part of a message must be an object, found {type(part).__name__}.")
        if part.get("type") == "text":
            return part
        kind = _KINDS.get(str(part.get("type")), "")
        if kind not in self.decoders:
            known = ", ".join(("text", *self.decoders))
            raise RecordError(
                "wrong_type", f"A part of a message has the type {part.get('type')!r:.100}; expected one of {known}."
            )
        source = next((part[name] for name in _SOURCES if part.get(name) is not None), None)
        if source is None and kind == "image":
            blanks.append({"type": kind})
            return blanks[-1]
        return {"type": kind, kind: self.decoders[kind](decode_file(source, kind))}


def decode_file(source: Json, kind: str) -> bytes:
    """Return the bytes of a file that stands in a request or a message.

    Args:
        source: text in base64 or a `data:` URL, or an object that holds it as OpenAI's API writes it; untrusted.
        kind: of the file, for messages.

    Raises:
        RecordError: `wrong_type`, it is of another form; `missing_file`, it is an address.
    """
    if isinstance(source, dict):
        source = source.get("url", source.get("data"))
    if not isinstance(source, str):
        raise RecordError("wrong_type", f"The {kind} of a message must be a text in base64, or a data: URL.")
    header, comma, data = source.partition(",")
    is_data = bool(comma) and header.startswith("data:") and header.endswith(";base64")
    try:
        return base64.b64decode(data if is_data else source, validate=True)
    except (binascii.Error, ValueError) as error:
        if is_data:
            raise RecordError("wrong_type", f"The data: URL of the {kind} is not base64: {error}.") from error
        raise RecordError(
            "missing_file",
            f"A message names its {kind} by a URL or path, {source!r:.100}; workers do not open these. Send the {kind} "
            "itself, in base64 or as a data: URL.",
        ) from error


def _put_first(messages: Sequence[dict[str, Any]], part: dict[str, Any]) -> None:
    """Put a part before the rest of the first message of the user."""
    message = next((message for message in messages if message["role"] == "user"), None)
    if message is None:
        raise RecordError("wrong_type", "The record has an image, and its messages have none of the role user.")
    content = message["content"]
    rest = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    message["content"] = [part, *rest]
