"""What an engine does not run, as far as that is known before it loads a model."""

from collections.abc import Mapping

from common.records import Json
from workers.inference.engines.sampling import lacking_parameter
from workers.models.load_options import LoadOptions

#: Dtypes that weights are rounded to as transformers loads them.
_ROUNDED = ("int8", "float8")


class EngineRefusal(Exception):
    """Raised when an engine does not serve a model; transformers runs it instead."""


def known_refusal(options: LoadOptions, params: Mapping[str, Json]) -> str | None:
    """Return why vLLM does not run a job, None if nothing speaks against it.

    Args:
        options: how the job's model is loaded.
        params: of the job, for its runner.
    """
    dtype = options.default_dtype if options.dtype == "auto" else options.dtype
    if dtype in _ROUNDED:
        return f"dtype={dtype}"
    if options.adapter:
        return "the model is an adapter"
    return lacking_parameter(params)
