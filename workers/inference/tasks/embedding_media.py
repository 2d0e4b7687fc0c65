"""Images and recordings for embedding models: files become what a model of sentence-transformers takes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.distribution import missing_libraries
from common.errors import RecordError
from common.records import Failure, Json
from common.tasks import TASKS
from workers.inference.embedding.package_model import PackageMedia, PackageModel
from workers.inference.loading.loader import missing_library
from workers.inference.tasks.media_files import SharedFiles
from workers.inference.tasks.vector_runner import media_refused
from workers.inference.text.tokenization import check_text

logger = logging.getLogger(__name__)

_TASK = TASKS["embedding"]
#: What decodes the files of a type: a library, and the extra that installs it.
_LIBRARIES = {"image": ("PIL", "images"), "audio": ("soundfile", "audio")}


@dataclass(frozen=True, slots=True)
class MediaReader:
    """Reads records with a file for one model."""

    package: PackageModel
    files: SharedFiles  #: those that the worker opens itself

    def read(self, fields: Mapping[str, Json], blob: bytes | None, prompt: str, task: str | None) -> PackageMedia:
        """Return a record, prepared.

        Args:
            fields: of the record: `image` or `audio`, and `text` if it goes with it.
            blob: the file; None for one that the worker opens. Untrusted.
            prompt: of the job.
            task: of the job.

        Raises:
            RecordError: `wrong_type`, the model takes no such record; `missing_file`; `bad_image`, `bad_audio`;
                `runner_error`, the model's processor does not take it.
            WorkerError: `missing_library`.
        """
        kind, *others = _TASK.file_fields(fields)
        if others or not self.package.supports(fields):
            accepted = [name for name in ("text", *_TASK.media) if self.package.supports([name])]
            raise media_refused(fields, " or ".join(accepted))
        parts: dict[str, Any] = {"text": check_text(fields["text"], "text")} if "text" in fields else {}
        parts[kind] = self._decode(kind, self.files.read(fields[kind]) if blob is None else blob)
        try:
            return self.package.prepare_media(parts, prompt, task)
        except Exception as error:  # untrusted input: processors may raise anything, and one record fails
            logger.debug("a record cannot be prepared", exc_info=True)
            failure = Failure.from_exception("runner_error", error)
            raise RecordError(failure.code, failure.message) from error

    def _decode(self, kind: str, blob: bytes) -> Any:
        library, extra = _LIBRARIES[kind]
        if missing_libraries([library]):
            raise missing_library(f"Decoding {kind} files needs {library}, which is not installed", extra)
        if kind == "audio":
            from workers.inference.tasks.audio import decode_audio

            rate = self.package.sampling_rate
            return {"array": decode_audio(blob, rate), "sampling_rate": rate}
        from transformers.image_utils import load_image

        from workers.inference.tasks.images import decode_image

        return load_image(decode_image(blob))  # upright, in RGB, as for pipelines
