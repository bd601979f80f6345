# docker build -t qmq .      docs/run-as-a-service.md says how to run it.
#
# The tests carry these steps out without an engine, with the Python that CI has: 3.11.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
WORKDIR /src
COPY LICENSE README.md pyproject.toml setup.py ./
COPY qmq ./qmq
COPY twisted ./twisted
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# --without-pip: nothing is to be installed later. --only-binary: there is no compiler here.
# twistd --help writes down the plug-ins, which the account that runs it later could not.
RUN python -m venv --without-pip /opt/qmq \
    && python -m pip --python /opt/qmq/bin/python install --no-cache-dir --only-binary :all: /wheels/*.whl \
    && /opt/qmq/bin/twistd --help >/dev/null

FROM python:${PYTHON}-slim-bookworm
LABEL org.opencontainers.image.title="qmq" \
      org.opencontainers.image.description="A mail gateway with a queue of its own for every customer" \
      org.opencontainers.image.licenses="MIT"
# A number, so that whoever runs it can see that it is not root, and give it folders.
RUN groupadd --gid 2025 qmq \
    && useradd --uid 2025 --gid 2025 --no-create-home --home-dir /var/spool/qmq --shell /usr/sbin/nologin qmq \
    && install -d -m 0700 -o 2025 -g 2025 /var/spool/qmq \
    && install -d -m 0755 /etc/qmq
COPY --from=build /opt/qmq /opt/qmq
ENV PATH=/opt/qmq/bin:$PATH
USER 2025:2025
WORKDIR /var/spool/qmq
# conf-qmq, certificates and control files are mounted to /etc/qmq.
VOLUME ["/var/spool/qmq"]
EXPOSE 25
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["qmq", "stat", "--conf", "/etc/qmq/conf-qmq"]
ENTRYPOINT ["twistd", "-n", "--pidfile=", "qmq", "--conf", "/etc/qmq/conf-qmq"]
