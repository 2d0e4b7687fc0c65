"""Writing outcomes: to files, to a pipe, and in short to a terminal.

Knows the formats; nothing of jobs or Redis. pyarrow is imported for Parquet alone.
"""

from common.results import ResultRow, to_line
from producer.outputs.formats import FORMATS, check_output, open_output
from producer.outputs.preview import preview
from producer.outputs.writer import Writer

__all__ = ["FORMATS", "ResultRow", "Writer", "check_output", "open_output", "preview", "to_line"]
