# Seamark with what it needs to reach a secondary over ssh. Built from a checkout: docker build -t seamark .
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends rsync openssh-client tar \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/seamark
COPY requirements.lock ./
RUN python3 -m venv /opt/environment \
    && /opt/environment/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY replication ./replication
COPY tasks ./tasks
COPY scheduler ./scheduler
COPY seamark ./seamark
COPY celeryconfig.py LICENSE ./

ENV PATH=/opt/environment/bin:$PATH \
    PYTHONPATH=/opt/seamark \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    SEAMARK_STATE_DIR=/var/lib/seamark
VOLUME /var/lib/seamark
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "seamark"]
CMD ["--help"]
