# The image of kbridge with the provisioner of Kubernetes, and a kernelspec for it, in this directory:
# docker build -f server.Dockerfile -t registry.example.org/kbridge-kubernetes:0.1.0 .
ARG KBRIDGE=registry.example.org/kbridge:0.1.0

FROM ${KBRIDGE}
ARG KERNEL=registry.example.org/kbridge-kernel:0.1.0
RUN pip install --no-cache-dir 'gateway_provisioners[k8s]==0.5.0' 'psycopg[binary]>=3.2.1' \
    && jupyter-k8s-spec install --prefix=/opt/kbridge --kernel-name=kubernetes_python \
       --display-name='Python (Kubernetes)' --image-name="${KERNEL}"
# In place of the template of gateway_provisioners: restricted, and without volumes from requests.
COPY --chown=1000:1000 kernel-pod.yaml.j2 /opt/kbridge/share/jupyter/kernels/kubernetes_python/scripts/
