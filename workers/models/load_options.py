"""Load options: how a runner loads its model, by the worker's settings and the job's parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from common.jobs import TRANSFORMERS
from common.params import check_params
from common.records import Json
from common.settings import Settings
from common.task_params import LOAD_PARAMS


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a runner loads its model.

    The worker's settings give all but the first four: `with_params` adds those of the job, the model cache the adapter.
    """

    dtype: str = "auto"  #: what the job asks for
    ignore_auto_map: bool = False  #: run transformers' own architecture where the model contains code
    params: Mapping[str, Json] = field(default_factory=dict)  #: those that a runner of another distribution declares
    adapter: str = ""  #: directory of the adapter that the model is loaded with
    default_dtype: str = "auto"  #: where the job asks for none
    allow_pickle: bool = False  #: weights that are pickles: opening them runs code
    allow_remote_code: bool = False  #: code from the model's repository
    max_new_tokens: int = 4096  #: that may be generated for one record
    shared: tuple[str, ...] = ()  #: directories and URLs whose files records may name
    max_file_bytes: int = 16 * 1024 * 1024  #: of such a file
    engine: str = TRANSFORMERS  #: what generates text, where it can: one of `common.jobs.ENGINES`
    engine_memory: float = 0.8  #: share of a GPU's memory that an engine may take

    @classmethod
    def of(cls, settings: Settings) -> "LoadOptions":
        """Return the options that a worker's settings give."""
        return cls(
            default_dtype=settings.dtype,
            allow_pickle=settings.allow_pickle,
            allow_remote_code=settings.allow_remote_code,
            max_new_tokens=settings.max_new_tokens,
            shared=settings.shared,
            max_file_bytes=settings.max_record_bytes,
            engine=settings.engine,
            engine_memory=settings.engine_memory,
        )

    def with_params(self, task: str, params: Mapping[str, Json]) -> "LoadOptions":
        """Return the options with a job's parameters, those that decide how its model is loaded.

        Raises:
            ModelError: `bad_param`.
        """
        known = {name: value for name, value in params.items() if name in LOAD_PARAMS}
        own = {name: value for name, value in params.items() if name not in LOAD_PARAMS}
        return replace(self, params=own, **check_params(task, LOAD_PARAMS, known))

    @property
    def runs_code(self) -> bool:
        """Whether code of the model's repository may run."""
        return self.allow_remote_code and not self.ignore_auto_map


#: Those of a worker with default settings, and of a job without parameters.
DEFAULT_OPTIONS = LoadOptions()
