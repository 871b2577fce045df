# docker build -t kbridge . && docker run -p 8888:8888 kbridge
# The digest pins the base image. `docker buildx imagetools inspect python:3.13-slim` prints the newest;
# --build-arg BASE=python:3.12-slim takes another image.
ARG BASE=python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY kbridge kbridge
COPY client-js client-js
# Build wheels first, then install only these wheels.
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[kernel]' \
    && python -m venv /opt/kbridge \
    && /opt/kbridge/bin/pip install --no-cache-dir --no-index --find-links /wheels 'kbridge[kernel]'

FROM ${BASE} AS runtime
# tini forwards SIGTERM, and reaps the children that kernels leave behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 kbridge
# The user owns the environment, so that `%pip install` in a notebook can write to it. Kernels run as
# the same user as the server, so other permissions would not protect anything.
COPY --from=build --chown=1000:1000 /opt/kbridge /opt/kbridge
ENV PATH=/opt/kbridge/bin:$PATH
# A number, because orchestrators that require non-root cannot look up names.
USER 1000
WORKDIR /home/kbridge
EXPOSE 8888
# Reads port, base URL and TLS from the server's runtime file, so that it follows the options below.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["kbridge", "health"]
# Options after the image's name take the place of CMD: docker run -p 8888:8888 kbridge --max-kernels=8
ENTRYPOINT ["tini", "--", "kbridge", "--ip=0.0.0.0"]
CMD ["--port=8888"]
