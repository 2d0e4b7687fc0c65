# One image per role, built from the same base, each with only the packages of its role:
#
#   producer   submits records and reads results; no torch
#   worker     loads models and runs them: texts, images and sound
#   flower     the monitoring page; no torch
#
#   docker build --target worker -t hugqueue-worker .
#
# docs/deployment.md explains how to choose the torch build and the package index.

ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS base
ENV PATH=/opt/hugqueue/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# The home is /cache, where a volume is mounted: libraries write to it, and the rest of the file system is read-only.
# The image's user owns it, so that the user also owns a new named volume mounted there.
RUN python -m venv /opt/hugqueue \
    && useradd --uid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin hugqueue \
    && install --directory --owner=hugqueue --group=hugqueue /cache /cache/huggingface /trained


# The requirements of each role (the base's and its extras') as plain lists. A role's layer of packages is rebuilt only
# when its own list changes, not when anything else in pyproject.toml or in the source does.
FROM base AS requirements
WORKDIR /requirements
COPY pyproject.toml .
RUN for role in producer:s3,hub,otel worker:worker,images,audio,video,sentence-transformers,trl,s3,otel flower:monitor; do \
        python -c "import sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *(line for extra in sys.argv[1].split(',') for line in extras[extra]), sep='\n')" \
        ${role#*:} > ${role%%:*}.txt || exit 1; \
    done


FROM base AS wheel
ARG PIP_INDEX_URL
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY common common
COPY hugqueue hugqueue
COPY producer producer
COPY workers workers
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheel .


FROM base AS producer
ARG PIP_INDEX_URL
COPY constraints.txt /requirements/
COPY --from=requirements /requirements/producer.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /requirements/constraints.txt --requirement /requirements/producer.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-deps /wheel/*.whl
USER hugqueue
WORKDIR /data
ENTRYPOINT ["producer"]
CMD ["--help"]


FROM base AS worker
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG TORCH=torch
COPY constraints.txt /requirements/
COPY --from=requirements /requirements/worker.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /requirements/constraints.txt --requirement /requirements/worker.txt "$TORCH"
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-deps /wheel/*.whl
ENV HF_HOME=/cache/huggingface
USER hugqueue
WORKDIR /cache
ENTRYPOINT ["workers"]
CMD ["start"]


FROM base AS flower
ARG PIP_INDEX_URL
COPY constraints.txt /requirements/
COPY --from=requirements /requirements/flower.txt /requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint /requirements/constraints.txt --requirement /requirements/flower.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    pip install --no-deps /wheel/*.whl
USER hugqueue
WORKDIR /cache
EXPOSE 5555
ENTRYPOINT ["celery", "--app", "hugqueue", "flower"]
CMD ["--address=0.0.0.0", "--port=5555", "--read-only", "--tasks_columns=name,args,result,state,runtime,worker,received"]
