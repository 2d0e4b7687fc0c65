"""Records of `.txt` and `.jsonl`: one a line, blank lines skipped but counted.

`first` is the number of the line that a stream begins with: 0, but for a part of a file that is read in place.
"""

import io
from collections.abc import Iterator

from common.inputs.record_builder import RecordBuilder
from common.inputs.strict_json import parse_json
from common.inputs.text import Line, bounded_lines, decode, excerpt, strip_newline, too_large_failure
from common.records import Failure, Record


def text_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, first: int = 0) -> Iterator[Record]:
    """Yield a record for each line that is not blank."""
    for line, text in _texts(builder, stream, max_bytes, first):
        yield text if isinstance(text, Record) else builder.text_record(line.number, text)


def json_records(builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, first: int = 0) -> Iterator[Record]:
    """Yield a record for each line that is not blank; a line that is not JSON fails alone, its text kept."""
    for line, text in _texts(builder, stream, max_bytes, first):
        if isinstance(text, Record):
            yield text
            continue
        try:
            value = parse_json(text)
        except ValueError as error:
            location = builder.source.location(line.number + 1)
            joint = ", " if str(error).startswith("column") else ": "
            yield builder.failed(line.number, Failure("bad_json", f"{location}{joint}{error}"), text)
        else:
            yield builder.record(line.number, line.number + 1, value)


def _texts(
    builder: RecordBuilder, stream: io.BufferedReader, max_bytes: int, first: int
) -> Iterator[tuple[Line, str | Record]]:
    """Yield each line with its text, or with the failed record where it has none."""
    for line in bounded_lines(stream, max_bytes, first):
        if line.too_large:
            failure = too_large_failure(builder.source, line.number, max_bytes)
            yield line, builder.failed(line.number, failure, excerpt(line.data))
            continue
        text, bad_encoding = decode(builder.source, line.number, strip_newline(line.data))
        if bad_encoding:
            yield line, builder.failed(line.number, bad_encoding, text)
        elif text and not text.isspace():
            yield line, text
