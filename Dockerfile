# docker build -t kbridge . && docker run -p 8888:8888 kbridge
ARG PYTHON_VERSION=3.13
# Pins the base image: --build-arg PYTHON_DIGEST=@sha256:..., from
# `docker buildx imagetools inspect python:3.13-slim`. Empty: the newest of its tag.
ARG PYTHON_DIGEST=

FROM python:${PYTHON_VERSION}-slim${PYTHON_DIGEST} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kbridge kbridge
# First wheels, then an environment made of nothing else: what runs is what was built.
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[kernel]' \
    && python -m venv /opt/kbridge \
    && /opt/kbridge/bin/pip install --no-cache-dir --no-index --find-links /wheels 'kbridge[kernel]'

FROM python:${PYTHON_VERSION}-slim${PYTHON_DIGEST} AS runtime
# tini hands SIGTERM on, and buries the children that kernels leave behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 kbridge
# The user owns the environment, so that `%pip install` in a notebook can write to it. Kernels run as
# the same user as the server: other permissions would protect nothing.
COPY --from=build --chown=1000:1000 /opt/kbridge /opt/kbridge
ENV PATH=/opt/kbridge/bin:$PATH
# A number: an orchestrator that insists on non-root cannot look names up.
USER 1000
WORKDIR /home/kbridge
EXPOSE 8888
# Reads port, base URL and TLS from the server's runtime file, so that it follows the options below.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 CMD ["kbridge", "health"]
# Options after the image's name take the place of CMD: docker run -p 8888:8888 kbridge --max-kernels=8
ENTRYPOINT ["tini", "--", "kbridge", "--ip=0.0.0.0"]
CMD ["--port=8888"]
