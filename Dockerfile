# Seamark with what it needs to reach a secondary over ssh. Built from a checkout: docker build -t seamark .
#
#   BASE    a Debian or Ubuntu with Python 3.11 or newer and its venv module

ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS builder
WORKDIR /opt/seamark
COPY requirements.lock ./
RUN python3 -m venv /opt/environment \
    && /opt/environment/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
    && /opt/environment/bin/pip uninstall --yes pip setuptools
COPY replication ./replication
COPY tasks ./tasks
COPY scheduler ./scheduler
COPY seamark ./seamark
COPY celeryconfig.py LICENSE ./
COPY deploy/compose ./deploy/compose
# The root file system of a container may be read-only: what Python keeps of a module is made now.
RUN python3 -m compileall -q replication tasks scheduler seamark celeryconfig.py

FROM ${BASE}
LABEL org.opencontainers.image.title="Seamark" \
    org.opencontainers.image.description="Asynchronous one-way geo-replication of a directory" \
    org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client rsync tar tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 seamark \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/seamark --shell /usr/sbin/nologin seamark \
    && install -d -o seamark -g seamark /var/lib/seamark \
    && printf '#!/bin/sh\nexec python3 -m seamark "$@"\n' >/usr/local/bin/seamark \
    && chmod 0755 /usr/local/bin/seamark
COPY --from=builder /opt/environment /opt/environment
COPY --from=builder /opt/seamark /opt/seamark

WORKDIR /opt/seamark
ENV PATH=/opt/environment/bin:$PATH \
    PYTHONPATH=/opt/seamark \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    SEAMARK_STATE_DIR=/var/lib/seamark \
    SEAMARK_CONFIG_DIR=/var/lib/seamark/config
VOLUME /var/lib/seamark
# Reads only what this user may read; compose.yaml says who it is where files of everybody are replicated.
USER seamark
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=20s --timeout=60s --start-period=60s CMD ["seamark", "status", "--check"]
ENTRYPOINT ["seamark"]
CMD ["--help"]
