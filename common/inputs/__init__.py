"""Inputs: records from files, URLs and standard input, read lazily and in bounded memory.

Knows formats and the fields of tasks, but neither jobs nor Redis. The producer reads whole inputs with it, and workers
read the splits of files that are read in place. pyarrow is imported only for Parquet.
"""

from common.inputs.reader import Inputs, find_inputs
from common.inputs.sources import FORMATS

__all__ = ["FORMATS", "Inputs", "find_inputs"]
