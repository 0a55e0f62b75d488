# An image with the workflow and all that it needs; docs/installation.md has the commands.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}

# cpu or cuda
ARG DEVICE=cpu
# the commit that records name; the image has no .git
ARG COMMIT=

# a compiler for torch.compile
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/attngrid
COPY . .
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --no-cache-dir uv==0.13.9 \
    && UV_NO_CACHE=1 make venv PYTHON=python3.11 UV=/opt/uv/bin/uv DEVICE="${DEVICE}" \
    && rm -r /opt/uv

ENV PATH=/opt/attngrid/.venv/bin:${PATH} ATTNGRID_COMMIT=${COMMIT}
WORKDIR /study
CMD ["attngrid", "--help"]
