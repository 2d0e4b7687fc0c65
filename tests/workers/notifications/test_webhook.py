"""What a notification says, verified by the implementation of the Standard Webhooks project."""

import json
import re
import time
from dataclasses import replace

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from common.jobs import Job, JobSpec, JobStatus, Output
from common.records import Counts, Failure
from tests.support.processes import ROOT
from tests.support.webhook_receiver import SECRET
from workers.notifications.webhook import webhook_body, webhook_headers, webhook_id

PAGE = ROOT / "docs" / "notifications.md"
SPEC = JobSpec(
    "0123456789ab",
    "embedding",
    model="org/model",
    name="nightly",
    labels={"run": "7"},
    created_at=1764406800.0,
    output=Output("s3://bucket/out", "parquet"),
    notify="https://hooks.example.com/jobs?token=swordfish",
)
JOB = Job(
    SPEC,
    JobStatus.FAILED,
    chunks=3,
    records=300,
    counts=Counts(190, 10, 1),
    started_at=1764406810.5,
    finished_at=1764406820.25,
    failure=Failure("too_many_errors", "10 records failed"),
)


def test_the_body_is_the_one_that_the_page_shows() -> None:
    [shown] = re.findall(r"^```json\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert json.loads(webhook_body(JOB)) == json.loads(shown)
    trained = replace(JOB, spec=replace(SPEC, queue="train", training={}), status=JobStatus.COMPLETED)
    assert json.loads(webhook_body(trained))["data"]["results"]["model"] == "job:0123456789ab"


def test_its_signature_is_that_of_the_standard() -> None:
    other = "whsec_" + "QUJD" * 10
    body = webhook_body(JOB)
    headers = webhook_headers(webhook_id(JOB), body, time.time(), (other, SECRET))
    for secret in (SECRET, other):
        assert Webhook(secret).verify(body.decode(), dict(headers)) == json.loads(body)
    for forged in (body.replace(b"failed", b"completed"), b"{}"):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(forged.decode(), dict(headers))
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + "QUJE" * 10).verify(body.decode(), dict(headers))
    assert "webhook-signature" not in webhook_headers(webhook_id(JOB), body, time.time(), ())


def test_each_end_of_a_job_has_its_own_id() -> None:
    assert webhook_id(JOB) == "0123456789ab-1764406820250"
    assert webhook_id(replace(JOB, round=1, finished_at=1764406900.0)) != webhook_id(JOB)
