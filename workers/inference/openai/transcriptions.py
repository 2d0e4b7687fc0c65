"""Transcriptions: what is said in the recording of a request."""

from collections.abc import Sequence

from common.errors import RecordError
from common.records import FileInput, Json
from workers.inference.openai.request import OpenAIRequest
from workers.inference.openai.request_runner import RequestRunner
from workers.inference.tasks.chat_media import decode_file


class TranscriptionRequests(RequestRunner):
    """Answers requests for the text of a recording."""

    def inputs_of(self, request: OpenAIRequest) -> Sequence[Json]:
        """Return the recording."""
        if not request.file:
            raise RecordError("missing_field", "The request has no recording.")
        return [FileInput("recording", decode_file(request.file, "audio"))]

    def response(self, request: OpenAIRequest, inputs: Sequence[Json], outputs: Sequence[Json], options: Json) -> Json:
        """Return the text, and the length of the recording."""
        from workers.inference.tasks.audio import audio_seconds  # its libraries are in an extra of their own

        [recording], [output] = inputs, outputs
        return {"text": output["text"], "seconds": audio_seconds(recording.blob)}
