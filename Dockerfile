# Two stages: the first builds and installs the wheel, the second contains only the result.
# The container runs as a user without rights, and works on a read-only root file system. It writes files only in
# server.state_dir, a volume for the counts of calls, and in /tmp, for exports whose length is asked for.
# Podman and buildah leave HEALTHCHECK out of the image, unless they are told to build it with "--format docker".
ARG PYTHON=3.14

FROM python:${PYTHON}-slim AS build
# 0 builds a wheel without compiled modules: the proxy is slower, and the build needs no compiler from Debian.
ARG CSQ_PROXY_COMPILE=1
RUN [ "$CSQ_PROXY_COMPILE" != 1 ] \
  || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
WORKDIR /src
COPY pyproject.toml README.md ./
COPY .ci/compile.py ./.ci/
COPY proxy ./proxy
COPY share ./share
RUN python -m venv --without-pip /opt/csq-proxy \
  && pip --python /opt/csq-proxy/bin/python install --no-cache-dir .

FROM python:${PYTHON}-slim
COPY --from=build /opt/csq-proxy /opt/csq-proxy
ENV PATH=/opt/csq-proxy/bin:$PATH PYTHONUNBUFFERED=1
# The base image has no bytecode of the standard library, and the container can write none later. With the
# bytecode that this import leaves, a start takes less than half of the time, and a health check a quarter.
RUN python -c "import encodings.idna, proxy.admin.metrics, proxy.app.run, proxy.cli.health, proxy.cli.main, proxy.config.load"
ENV PYTHONDONTWRITEBYTECODE=1
# A volume that is mounted here begins with this owner and mode: for server.state_dir, where counts are to last.
RUN install -d -o 65532 -g 65532 -m 700 /var/lib/csq-proxy
USER 65532:65532
EXPOSE 8277
# Asks where the configuration says that the proxy listens. A 401, where callers are defined, means alive.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["csq-proxy", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["csq-proxy"]
CMD ["serve"]
