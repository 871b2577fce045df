# The image of kernels, in this directory:
# docker build -f kernel.Dockerfile -t registry.example.org/kbridge-kernel:0.1.0 .
FROM python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b
# The kernel, and the launcher that reports its ports to the server.
RUN pip install --no-cache-dir 'ipykernel>=7.4' gateway_provisioners==0.5.0 \
    && jupyter-image-bootstrap install --languages=Python \
    && useradd --create-home --uid 1000 kbridge
# Users may install packages. The name of the home directory is that of the server's image, because
# kernels get the environment of the server, without its secrets.
USER 1000
WORKDIR /home/kbridge
CMD ["bash", "/usr/local/bin/bootstrap-kernel.sh"]
