"""Scores of pairs of texts, in the order in which the request has them."""

from collections.abc import Sequence

from common.errors import RecordError
from common.records import Json
from workers.inference.openai.request import OpenAIRequest
from workers.inference.openai.request_runner import RequestRunner


class ScoreRequests(RequestRunner):
    """Answers requests that rank documents or score pairs."""

    def inputs_of(self, request: OpenAIRequest) -> Sequence[Json]:
        """Return the queries, each with its documents."""
        if not request.rankings:
            raise RecordError("missing_field", "The request has no documents.")
        return request.rankings

    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the scores of all documents, and the number of tokens of all pairs."""
        scores = [one["score"] for found in outputs for one in sorted(found, key=lambda one: int(one["index"]))]
        return {"scores": scores, "prompt_tokens": self.inner.count_tokens(inputs, options)}
