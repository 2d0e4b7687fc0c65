"""A Celery app that uses hugqueue without importing it: in a chain, and on a schedule (docs/celery.md explains).

export REDIS_URL=redis://localhost:6379/0    # where the workers of hugqueue and `producer control` run
celery -A celery_app worker --beat           # the worker and the schedule of this app
python celery_app.py                         # a chain, whose end it prints
"""

import os

from celery import Celery, chain

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")
app = Celery("celery_app", broker=REDIS_URL, backend=REDIS_URL)
app.conf.task_routes = {"hugqueue.*": {"queue": "hugqueue.control"}}

#: MODEL is the name of a model that the workers find; without it, they use the default of the task.
JOB = {"task": "fill-mask", "model": os.environ.get("MODEL"), "params": {"top_k": 1}}


@app.task
def words(results: list[dict]) -> list[str]:
    """Return the word that the model put into each record."""
    return [row["output"][0]["token_str"] for row in results]


@app.task
def note_end(job: dict) -> str:
    """Note how a job of the schedule ended; what a task of this app returns is in its log and in its results."""
    return f"{job['name']} {job['status']}: {job['counts']['succeeded']} records"


app.conf.beat_schedule = {
    "capitals": {
        "task": "hugqueue.submit",
        "schedule": float(os.environ.get("SECONDS", "3600")),
        "kwargs": {
            **JOB,
            "name": "hourly",
            "records": ["The capital of Japan is [MASK].", "The capital of Italy is [MASK]."],
            "callback": note_end.s(),
        },
    }
}

if __name__ == "__main__":
    capital_of_france = chain(
        app.signature("hugqueue.submit", kwargs={**JOB, "records": ["The capital of France is [MASK]."]}),
        app.signature("hugqueue.wait"),
        app.signature("hugqueue.results"),
        words.s(),
    )
    print(capital_of_france().get(timeout=300))
