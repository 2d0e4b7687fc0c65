"""Settings from environment variables, all read here.

The command line takes precedence over the environment, and that over the defaults below. The libraries of Hugging Face
read their own variables (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, ...).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from common.errors import UsageError, path_errors
from common.jobs import DTYPES, ENGINES, QUEUES, TRANSFORMERS
from common.notifications import check_allowed, secret_bytes
from common.redis.url import check_redis_url, mask_url
from common.storage.locations import is_shared, is_url, local_path
from common.training.reporters import REPORTERS


def _default_home(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or "~").expanduser() / ".local" / "state"
    return Path(base) / "hugqueue"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the environment decides. Times are in seconds."""

    #: Redis, as `redis://`, `rediss://` or `redis+socket://`; None means embedded.
    broker_url: str | None = field(default=None, metadata={"env": "CELERY_BROKER_URL, else REDIS_URL"})
    #: Directory of the embedded Redis, its data and its logs.
    home: Path = field(default=Path(), metadata={"env": "HUGQUEUE_HOME"})
    #: How long a lease lasts after its last renewal.
    lease_seconds: float = field(default=30.0, metadata={"env": "HUGQUEUE_LEASE"})
    #: How often a worker renews its leases and checks whether a job was cancelled.
    renew_seconds: float = field(default=1.0, metadata={"env": "HUGQUEUE_RENEW"})
    #: How often one of the workers looks for expired leases and lost tickets.
    reap_seconds: float = field(default=5.0, metadata={"env": "HUGQUEUE_REAP"})
    #: How long a stopping worker may take to finish its chunks before it releases them.
    grace_seconds: float = field(default=30.0, metadata={"env": "HUGQUEUE_GRACE"})
    #: How long a batch may make no progress before its device process is killed.
    batch_timeout: float = field(default=600.0, metadata={"env": "HUGQUEUE_BATCH_TIMEOUT"})
    #: How long loading a model may make no progress before its device process is killed.
    load_timeout: float = field(default=600.0, metadata={"env": "HUGQUEUE_LOAD_TIMEOUT"})
    #: How long a finished job is kept.
    result_ttl: float = field(default=7 * 86400.0, metadata={"env": "HUGQUEUE_RESULT_TTL"})
    #: How long a producer may be silent in the middle of a submit before its job is abandoned.
    producer_ttl: float = field(default=60.0, metadata={"env": "HUGQUEUE_PRODUCER_TTL"})
    #: Size limit of one record, or of the file that it names, in bytes.
    max_record_bytes: int = field(default=16 * 1024 * 1024, metadata={"env": "HUGQUEUE_MAX_RECORD_BYTES"})
    #: Limits of one job: records, and bytes of text and of files.
    max_job_records: int = field(default=100_000_000, metadata={"env": "HUGQUEUE_MAX_JOB_RECORDS"})
    max_job_bytes: int = field(default=64 * 1024**3, metadata={"env": "HUGQUEUE_MAX_JOB_BYTES"})
    #: How many tokens a worker generates for one record, over all beams and sequences.
    max_new_tokens: int = field(default=4096, metadata={"env": "HUGQUEUE_MAX_NEW_TOKENS"})
    #: Directories under which a job may name a model by path, separated by `:`.
    model_roots: tuple[Path, ...] = field(default=(), metadata={"env": "HUGQUEUE_MODEL_ROOTS"})
    #: The device of a worker: `auto`, `cpu`, `gpu`, or one GPU such as `cuda:0`.
    device: str = field(default="auto", metadata={"env": "HUGQUEUE_DEVICE"})
    #: What models compute in if the job names no dtype: `auto`, `float32`, `bfloat16`, `float16`, `int8` or `float8`.
    dtype: str = field(default="auto", metadata={"env": "HUGQUEUE_DTYPE"})
    #: What generates text where it can: `transformers`, `vllm`, or `auto`: vLLM on a GPU, if it is installed.
    engine: str = field(default=TRANSFORMERS, metadata={"env": "HUGQUEUE_ENGINE"})
    #: Share of a GPU's memory that an engine may take, from 0 to 1.
    engine_memory: float = field(default=0.8, metadata={"env": "HUGQUEUE_ENGINE_MEMORY"})
    #: Models that a worker loads when it starts: `TASK` or `TASK=MODEL`, separated by `,`.
    preload: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_PRELOAD"})
    #: Queues that a worker serves, separated by `,`; empty means `any` and that of its device.
    queues: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_QUEUES"})
    #: The id of the process that started this one, if this one is to end with it.
    supervised: int = field(default=0, metadata={"env": "HUGQUEUE_SUPERVISED"})
    #: Whether jobs may name any path or URL as model, input or output: for a worker that serves only its own user.
    any_path: bool = field(default=False, metadata={"env": "HUGQUEUE_ANY_PATH"})
    #: Whether a worker may load weights from pickles, which can run code.
    allow_pickle: bool = field(default=False, metadata={"env": "HUGQUEUE_ALLOW_PICKLE"})
    #: Whether a worker may run code from a model's repository (`trust_remote_code`).
    allow_remote_code: bool = field(default=False, metadata={"env": "HUGQUEUE_ALLOW_REMOTE_CODE"})
    #: Where the records and outcomes of jobs are kept, if not in Redis: a shared directory, or a URL.
    store_url: str = field(default="", metadata={"env": "HUGQUEUE_STORE_URL"})
    #: Directories and URLs that all workers can read, separated by `,`: inputs there are read in place.
    shared: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_SHARED"})
    #: Where fine-tuned models are kept: a shared directory, or a URL that fsspec can open.
    models_url: str = field(default="", metadata={"env": "HUGQUEUE_MODELS_URL"})
    #: Whether a worker also serves the queue `train`.
    train: bool = field(default=False, metadata={"env": "HUGQUEUE_TRAIN"})
    #: Programs that fine-tune jobs may report to, separated by `,`: `tensorboard`, `trackio`, `wandb`, `mlflow`.
    report_to: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_REPORT_TO"})
    #: The broker of the Celery apps that submit jobs by tasks, if it is not the Redis of this queue.
    control_broker_url: str = field(default="", metadata={"env": "HUGQUEUE_CONTROL_BROKER_URL"})
    #: Where these apps look for results, if it is not their broker.
    control_result_backend: str = field(default="", metadata={"env": "HUGQUEUE_CONTROL_RESULT_BACKEND"})
    #: How often a fine-tune job writes a checkpoint, in addition to the end of each epoch.
    checkpoint_seconds: float = field(default=300.0, metadata={"env": "HUGQUEUE_CHECKPOINT"})
    #: How long a command that writes results to the Hub waits between two commits, of which it allows 128 an hour.
    hub_commit_seconds: float = field(default=60.0, metadata={"env": "HUGQUEUE_HUB_COMMIT"})
    #: The size of the Parquet files of results on the Hub, in bytes.
    hub_shard_bytes: int = field(default=128 * 1024 * 1024, metadata={"env": "HUGQUEUE_HUB_SHARD_BYTES"})
    #: Patterns of Hub ids that jobs may name, separated by `,`; empty allows all.
    allowed_models: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_ALLOWED_MODELS"})
    #: The URL that is notified when a job ends, if its submit names none.
    notify_url: str = field(default="", metadata={"env": "HUGQUEUE_NOTIFY_URL"})
    #: Origins that workers may notify besides public ones with https, separated by `,`; `*` for any.
    notify_allowed: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_NOTIFY_ALLOWED"})
    #: Secrets that sign notifications, separated by `,`: one signature for each.
    notify_secrets: tuple[str, ...] = field(default=(), metadata={"env": "HUGQUEUE_NOTIFY_SECRET"})
    #: How long one attempt to send a notification may take, from the connection to the answer.
    notify_timeout: float = field(default=15.0, metadata={"env": "HUGQUEUE_NOTIFY_TIMEOUT"})
    #: The pause after the first failed attempt to send a notification; each further pause is twice as long.
    notify_retry_seconds: float = field(default=5.0, metadata={"env": "HUGQUEUE_NOTIFY_RETRY"})
    #: How long after the end of a job attempts to send its notification are given up.
    notify_give_up_seconds: float = field(default=86400.0, metadata={"env": "HUGQUEUE_NOTIFY_GIVE_UP"})

    @property
    def embedded(self) -> bool:
        """Whether no Redis is configured, so that commands start one of their own."""
        return self.broker_url is None

    def may_open(self, location: str) -> bool:
        """Whether this process may open a path or URL that a job names as its store, input or output."""
        return self.any_path or is_shared(location, tuple(filter(None, (self.store_url, *self.shared))))

    @property
    def broker(self) -> str:
        """The URL of Redis for messages: its password is masked."""
        return mask_url(self.broker_url or "embedded Redis")

    @property
    def model_cache(self) -> Path:
        """Where fine-tuned models from a registry at a URL are cached."""
        return self.home / "model-cache"

    @property
    def worker_stop_seconds(self) -> float:
        """How long a worker may take to stop before it is killed: its grace period, and time to end its threads."""
        return self.grace_seconds + 20.0

    @property
    def supervisor_stop_seconds(self) -> float:
        """How long `workers start` may take to stop: longer than its workers, which it kills after their time."""
        return self.worker_stop_seconds + 10.0

    def __repr__(self) -> str:
        return f"Settings(broker_url={self.broker!r}, home={str(self.home)!r}, ...)"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the environment.

    Raises:
        UsageError: a variable has an invalid value.
    """
    env = os.environ if environ is None else environ
    values = _read_locations(env)
    for setting in fields(Settings):
        name = setting.metadata["env"]
        if setting.name not in values and env.get(name):
            values[setting.name] = _parse(name, env, setting.default)
    for queue in values.get("queues", ()):
        _check_choice("HUGQUEUE_QUEUES", queue, QUEUES)
    for name in values.get("report_to", ()):
        _check_choice("HUGQUEUE_REPORT_TO", name, REPORTERS)
    _check_choice("HUGQUEUE_DTYPE", values.get("dtype", "auto"), DTYPES)
    _check_choice("HUGQUEUE_ENGINE", values.get("engine", TRANSFORMERS), ENGINES)
    if values.get("engine_memory", 0.8) > 1:
        raise UsageError(f"HUGQUEUE_ENGINE_MEMORY must be at most 1, found {env['HUGQUEUE_ENGINE_MEMORY']!r}.")
    for secret in values.get("notify_secrets", ()):
        secret_bytes(secret)
    return Settings(**values)


def _read_locations(env: Mapping[str, str]) -> dict[str, Any]:
    with path_errors("HUGQUEUE_HOME"):
        home = Path(env.get("HUGQUEUE_HOME") or _default_home(env)).expanduser()
    return {
        "broker_url": _redis_url(env),
        "home": home,
        "model_roots": tuple(Path(absolute(root)) for root in _split(env, "HUGQUEUE_MODEL_ROOTS", ":")),
        "shared": tuple(absolute(location) for location in _split(env, "HUGQUEUE_SHARED", ",")),
        "store_url": absolute(env.get("HUGQUEUE_STORE_URL", "").strip()),
        "notify_allowed": tuple(map(check_allowed, _split(env, "HUGQUEUE_NOTIFY_ALLOWED", ","))),
    }


def _redis_url(env: Mapping[str, str]) -> str | None:
    url = (env.get("CELERY_BROKER_URL") or env.get("REDIS_URL") or "").strip()
    return check_redis_url(url) if url else None


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}.")


def traces_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's own variables ask for traces by OTLP."""
    env = os.environ if environ is None else environ
    exporters = env.get("OTEL_TRACES_EXPORTER") or "otlp"
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true" or "otlp" not in exporters.split(","):
        return False
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER")
    return any(env.get(name) for name in names)


def to_environ(settings: Settings) -> dict[str, str]:
    """Return the environment variables that mean `settings`, for child processes."""
    environ = {}
    for setting in fields(Settings):
        value = getattr(settings, setting.name)
        name = "CELERY_BROKER_URL" if setting.name == "broker_url" else setting.metadata["env"]
        if isinstance(value, tuple):
            value = (":" if setting.name == "model_roots" else ",").join(map(str, value))
        environ[name] = str(int(value)) if isinstance(value, bool) else str(value or "")
    return environ


def absolute(location: str) -> str:
    """Return a path made absolute; a URL, or an empty text, unchanged."""
    if not location or is_url(location):
        return location
    with path_errors(location):
        return str(local_path(location).expanduser().absolute())


def _split(env: Mapping[str, str], name: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in env.get(name, "").split(separator) if part.strip())


def _parse(name: str, env: Mapping[str, str], default: object) -> object:
    text = env[name]
    if isinstance(default, bool):
        return _flag(name, text)
    if isinstance(default, tuple):
        return _split(env, name, ",")
    if isinstance(default, str):
        return text
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        value = -1
    if not 0 < value < float("inf"):
        raise UsageError(f"{name} must be a number above 0, found {text!r}.")
    return value


def _flag(name: str, text: str) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise UsageError(f"{name} must be 1 or 0, found {text!r}.")
    return words[text.lower()]
