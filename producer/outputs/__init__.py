"""Output formats of results: files, lines for a pipe, and short previews for a terminal.

Independent of jobs and Redis. pyarrow and numpy are imported only by the formats that need them.
"""

from common.results import ResultRow
from producer.outputs.formats import FORMATS, check_output, open_output
from producer.outputs.preview import preview
from producer.outputs.writer import Writer

__all__ = ["FORMATS", "ResultRow", "Writer", "check_output", "open_output", "preview"]
