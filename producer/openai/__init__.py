"""OpenAI batch files: requests become records, and outcomes become responses.

The format: https://platform.openai.com/docs/api-reference/batch (request input, request output), and vLLM's
`run-batch`, which writes results and errors into one file, as here.
"""

from producer.openai.batch_file import BatchFile, find_batch, read_batch
from producer.openai.responses import BatchWriter, check_batch_options, check_batch_params, response_line

__all__ = [
    "BatchFile",
    "BatchWriter",
    "check_batch_options",
    "check_batch_params",
    "find_batch",
    "read_batch",
    "response_line",
]
