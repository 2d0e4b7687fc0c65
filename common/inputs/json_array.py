"""JSON records: the elements of one array, streamed, or JSON lines.

An array is split into its elements at brackets and quotes, so that it is never held in memory and an element that is
not JSON fails alone.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from common.errors import UsageError
from common.inputs.record_builder import RecordBuilder
from common.inputs.strict_json import parse_json
from common.inputs.text import BOM, decode, excerpt, json_records, too_large_failure
from common.records import Failure, Record

_BLOCK = 64 * 1024
_SHOWN = 201  # bytes kept of an element that is too large
_OUTSIDE = re.compile(rb'["\[\]{},]')
_IN_TEXT = re.compile(rb'["\\]')


def json_file_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int) -> Iterator[Record]:
    """Yield a record for each element of the array, or for each line.

    Raises:
        UsageError: the file is a single object over several lines.
    """
    head = stream.peek(_BLOCK).removeprefix(BOM).lstrip()
    first, _, rest = head.partition(b"\n")
    several = bool(rest.strip())
    if head.startswith(b"[") and not (several and _are_chats(builder, first)):
        yield from array_records(builder, stream, max_bytes)
        return
    if several and _depth(first) > 0:
        raise UsageError(
            f"{builder.source.label} is a single JSON object over several lines; expected an array, or one record "
            f"per line. If the object contains a list of records, extract it: "
            f"jq -c '.NAME[]' {builder.source.label} > records.jsonl"
        )
    yield from json_records(builder, stream, max_bytes)


def array_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int) -> Iterator[Record]:
    """Yield a record for each element of an array; the default id is its number, from 0."""
    for number, element in enumerate(_elements(stream, max_bytes)):
        if element.size > max_bytes and not element.fault:
            yield builder.failed(
                number, too_large_failure(builder.source, element.line, max_bytes), excerpt(bytes(element.data))
            )
            continue
        text, failure = decode(builder.source, element.line, bytes(element.data).strip())
        fault, value = element.fault, None
        try:
            value = parse_json(text)
        except ValueError as error:
            fault = fault or str(error)
        if fault and not failure:
            failure = Failure("bad_json", f"{builder.source.location(element.line + 1)}: {fault}")
        if failure:
            yield builder.failed(number, failure, excerpt(text.encode()))
        else:
            yield builder.record(number, element.line + 1, value)


def _are_chats(builder: RecordBuilder, first: bytes) -> bool:
    """Whether each line is a record of its own: a list of chat messages."""
    return ("messages",) in builder.task.fields and _depth(first) == 0 and first.rstrip().endswith(b"]")


def _depth(line: bytes) -> int:
    """Return the number of brackets that a line opens and does not close."""
    depth = position = 0
    in_text = False
    while match := (_IN_TEXT if in_text else _OUTSIDE).search(line, position):
        position = match.end() + (match[0] == b"\\")
        in_text ^= match[0] == b'"'
        depth += (match[0] in b"[{") - (match[0] in b"]}")
    return depth


@dataclass(slots=True)
class _Element:
    line: int  #: its first line, from 0
    data: bytearray = field(default_factory=bytearray)  #: only the first bytes of one that is too large
    size: int = 0
    fault: str = ""  #: for the last element: what is wrong with the array

    def add(self, data: bytes, max_bytes: int) -> int:
        """Append bytes; return the number of line ends in them."""
        lines = data.count(b"\n")
        if not self.size:
            rest = data.lstrip()
            self.line += data.count(b"\n", 0, len(data) - len(rest))
            data = rest
        self.size += len(data)
        self.data += data
        if self.size > max_bytes:
            del self.data[_SHOWN:]
        return lines


def _elements(stream: io.BufferedReader, max_bytes: int) -> Iterator[_Element]:
    head = stream.peek(_BLOCK)
    opening = head.index(b"[") + 1
    line = head.count(b"\n", 0, opening)
    stream.read(opening)
    element = _Element(line)
    depth, skipped, in_text, found = 1, 0, False, False
    while block := stream.read(_BLOCK):
        start, position = 0, skipped
        while match := (_IN_TEXT if in_text else _OUTSIDE).search(block, position):
            token, position = match[0], match.end() + (match[0] == b"\\")  # skip an escaped character
            in_text ^= token == b'"'
            depth += (token in b"[{") - (token in b"]}")
            if depth > 1 or (depth == 1 and token != b","):
                continue
            line += element.add(block[start : match.start()], max_bytes)
            if element.size or token == b"," or found:
                found = True
                yield element
            if depth == 0:
                yield from _after(stream, block[position:], line, max_bytes)
                return
            element, start = _Element(line), position
        line += element.add(block[start:], max_bytes)
        skipped = max(0, position - len(block))
    element.fault = "the array has no closing ]"
    yield element


def _after(stream: io.BufferedReader, block: bytes, line: int, max_bytes: int) -> Iterator[_Element]:
    """Yield what follows the array, if anything: an extra bracket may have closed it early."""
    element = _Element(line, fault="the array is closed before this")
    while block:
        element.add(block, max_bytes)
        block = stream.read(_BLOCK)
    if element.size:
        yield element
