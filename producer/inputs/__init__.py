"""Reading inputs: files and standard input become records, lazily and in bounded memory.

Knows the formats and the fields of tasks; nothing of jobs, chunks or Redis. pyarrow is imported for Parquet alone.
"""

from producer.inputs.duplicates import DuplicateIds, watch_duplicates
from producer.inputs.reading import check_inputs, read_records
from producer.inputs.sources import FORMATS

__all__ = ["FORMATS", "DuplicateIds", "check_inputs", "read_records", "watch_duplicates"]
