# Two stages: the first compiles a wheel and installs it, the second carries the result alone.
# Runs as a user without rights on a read-only root file system: nothing is ever written.
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# 0 makes a plain wheel: it is slower, and takes no compiler from Debian.
ARG CSQ_PROXY_COMPILE=1
RUN [ "$CSQ_PROXY_COMPILE" != 1 ] \
  || { apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev; }
WORKDIR /src
COPY pyproject.toml README.md ./
COPY .ci/compile.py ./.ci/
COPY proxy ./proxy
RUN python -m venv --without-pip /opt/csq-proxy \
  && pip --python /opt/csq-proxy/bin/python install --no-cache-dir .

FROM python:${PYTHON}-slim
COPY --from=build /opt/csq-proxy /opt/csq-proxy
ENV PATH=/opt/csq-proxy/bin:$PATH PYTHONUNBUFFERED=1
# The base has no bytecode of the standard library, and none can be written later. With it a start takes less
# than half of the time, and a health check a quarter.
RUN python -c "import encodings.idna, http.client, proxy.admin.metrics, proxy.app.run, proxy.cli.main, proxy.config.load"
ENV PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 8277
# Any answer means alive; where callers are defined it is a 401.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
  CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8277, timeout=2); c.request('GET', '/-/healthy'); raise SystemExit(c.getresponse().status >= 500)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["csq-proxy"]
CMD ["serve"]
