# Lictor's image: one for every command (serve, sync, up, migrate, register, doctor). docs/image.md tells of it.
#   usage: scripts/image, which puts the wheels into build/wheels and calls `docker build --network=none`
# No step asks a network, and nothing here needs BuildKit.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS install
COPY build/wheels /wheels
# By name, not by path: pip would write down where each wheel lay.
ENV PIP_NO_INDEX=1 \
    PIP_FIND_LINKS=/wheels
RUN python3 -m venv /opt/lictor \
 && /opt/lictor/bin/python -m pip install -q --disable-pip-version-check --no-cache-dir 'lictor[otel,postgres]' \
 && /opt/lictor/bin/python -m pip uninstall -q -y setuptools pip
COPY scripts/image_health.py /opt/lictor/bin/image-health
RUN mkdir /data && chown 65532:65532 /data

FROM ${BASE_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lictor" \
      org.opencontainers.image.description="Which modules are here, are they well, and what does each of them offer" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=install /opt/lictor /opt/lictor
COPY --from=install --chown=65532:65532 /data /data
# The root file system may be read-only: all that is written goes to /data and /tmp.
ENV PATH=/opt/lictor/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LICTOR_BIND=0.0.0.0:8080 \
    LICTOR_METRICS_BIND=0.0.0.0:8081 \
    LICTOR_DATABASE_URL=sqlite:////data/lictor.db
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s CMD ["image-health"]
ENTRYPOINT ["lictor"]
CMD ["up"]
