"""Embeddings: the vectors of all texts of a request, and their number of tokens."""

from collections.abc import Sequence

from common.errors import RecordError
from common.records import Json
from workers.inference.openai.request import OpenAIRequest
from workers.inference.openai.request_runner import RequestRunner


class EmbeddingRequests(RequestRunner):
    """Answers requests for vectors."""

    def inputs_of(self, request: OpenAIRequest) -> Sequence[Json]:
        """Return the texts."""
        if not request.texts:
            raise RecordError("wrong_type", "The request has no text.")
        return request.texts

    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the vectors, and the number of tokens."""
        return {"embeddings": list(outputs), "prompt_tokens": sum(self.inner.token_counts(inputs, options))}
