# Images of palestra, one target per use:
#   docker build --target sandbox -t palestra-sandbox .   what a policy's code runs in; no palestra
#   docker build --target serve   -t palestra-serve .     inference and evaluation
#   docker build --target train   -t palestra-train .     the training stages and the demo
# BASE is any Debian or Ubuntu image with Python 3.11 or newer and its venv module; for GPUs name one
# with CUDA, and give TORCH_ARGS what pip needs to find the matching build.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
# The working directory never shadows an installed package.
ENV PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
RUN useradd --create-home --uid 1000 agent

# Python, a shell, git and packages; the label says which, so that palestra can tell. Nothing of the
# environment that the other images need: the policy's programs would inherit it.
FROM ${BASE} AS sandbox
ARG PACKAGES="numpy pandas sympy pytest"
LABEL palestra.packages="${PACKAGES}"
RUN apt-get update && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /opt/constraints.txt
RUN python3 -m venv /opt/pip \
    && PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore /opt/pip/bin/pip \
    --python "$(command -v python3)" install --no-cache-dir -c /opt/constraints.txt ${PACKAGES} \
    && rm -r /opt/pip /opt/constraints.txt
RUN useradd --uid 1000 --home-dir /work --create-home agent
USER agent
WORKDIR /work
CMD ["python3"]

# The wheel is built apart, so that no image carries sources or build tools.
FROM base AS wheel
WORKDIR /src
RUN python3 -m venv /opt/build && /opt/build/bin/pip install "setuptools>=77" build
COPY pyproject.toml README.md LICENSE ./
COPY palestra palestra
COPY tools tools
COPY verifiers verifiers
COPY envs envs
COPY rollout rollout
COPY trainer trainer
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /wheels

FROM base AS installed
ARG TORCH_ARGS=""
COPY constraints.txt /opt/constraints.txt
RUN python3 -m venv /opt/palestra \
    && /opt/palestra/bin/pip install ${TORCH_ARGS} "$(grep -E '^torch==' /opt/constraints.txt)"
COPY --from=wheel /wheels /opt/wheels
RUN /opt/palestra/bin/pip install -c /opt/constraints.txt \
    "$(ls /opt/wheels/palestra-*.whl)[serve,train]"

FROM base AS serve
COPY --from=installed /opt/palestra /opt/palestra
ENV PATH=/opt/palestra/bin:$PATH
USER agent
WORKDIR /home/agent
ENTRYPOINT ["palestra"]
CMD ["doctor"]

FROM serve AS train
ENV OMP_NUM_THREADS=1
# Made here, so that a volume mounted over it belongs to the user.
RUN mkdir runs
VOLUME /home/agent/runs
CMD ["demo"]
