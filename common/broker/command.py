"""The command `celery` with an app of ours, run as a module: `python -P -m workers.app worker`."""

from typing import NoReturn

from celery import Celery
from celery.bin.celery import celery as command


def run_celery(app: Celery) -> NoReturn:
    """Be `celery` with this app and the arguments of this process.

    `celery -A` imports the app by its name with the working directory first on the path, where a `common/` or
    `workers/` of somebody else may lie.
    """
    [option] = [option for option in command.params if option.name == "app"]
    option.default = app  # it takes apps as well as names
    option.envvar, option.allow_from_autoenv = None, False  # $APP and $CELERY_APP are somebody else's
    command(auto_envvar_prefix="CELERY")  # as `python -m celery` calls it
    raise SystemExit(0)
