"""Writing outcomes: to files, to a pipe, and in short to a terminal.

Knows the formats; nothing of jobs or Redis. pyarrow is imported for Parquet alone.
"""

from common.rows import Row, to_line
from producer.outputs.opening import FORMATS, check_output, open_output
from producer.outputs.table import preview
from producer.outputs.writers import Writer

__all__ = ["FORMATS", "Row", "Writer", "check_output", "open_output", "preview", "to_line"]
