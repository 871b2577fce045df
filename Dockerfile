# docker build -t kbridge . && docker run -p 8888:8888 kbridge
ARG PYTHON_VERSION=3.13

FROM python:${PYTHON_VERSION}-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kbridge kbridge
# First wheels, then an environment made of nothing else: what runs is what was built.
RUN pip wheel --no-cache-dir --wheel-dir /wheels '.[kernel]' \
    && python -m venv /opt/kbridge \
    && /opt/kbridge/bin/pip install --no-cache-dir --no-index --find-links /wheels 'kbridge[kernel]'

FROM python:${PYTHON_VERSION}-slim AS runtime
# tini hands SIGTERM on, and buries the children that kernels leave behind.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 kbridge
COPY --from=build /opt/kbridge /opt/kbridge
ENV PATH=/opt/kbridge/bin:$PATH
# A number: an orchestrator that insists on non-root cannot look names up.
USER 1000
WORKDIR /home/kbridge
EXPOSE 8888
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8888, timeout=4); c.request('GET', '/api'); raise SystemExit(c.getresponse().status != 200)"]
# Options after the image's name take the place of CMD: docker run -p 8888:8888 kbridge --max-kernels=8
ENTRYPOINT ["tini", "--", "kbridge", "--ip=0.0.0.0"]
CMD ["--port=8888"]
