"""Reading inputs: files, addresses and standard input become records, lazily and in bounded memory.

Knows the formats and the fields of tasks; nothing of jobs or Redis. The producer reads whole inputs with it, and a
worker the rows of a chunk that it was told to read in place. pyarrow is imported for Parquet alone.
"""

from common.inputs.reader import Inputs, find_inputs
from common.inputs.sources import FORMATS

__all__ = ["FORMATS", "Inputs", "find_inputs"]
