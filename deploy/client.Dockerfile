# The client of mixserve, for trainers that need NumPy and no more. Build it from the root of the checkout:
#   docker build --file deploy/client.Dockerfile --tag mixserve-client .
#   docker run --rm mixserve-client python -c 'import mixserve_client'
# Trainers with JAX or PyTorch: `pip install ./client` into an image of theirs. --build-arg EXTRAS=checksum replaces the
# optional parts of mixserve-client; --build-arg BASE=… the image of Python, 3.11 or newer, on Debian.
ARG BASE=python:3.11-slim-bookworm

# Debian with Python, and nothing to install more by. deploy/Dockerfile begins with the same stage.
# hadolint ignore=DL3006
FROM ${BASE} AS root
# /usr/share/doc keeps the licenses. A base from Debian's own packages has pip as packages, python's image as files.
RUN { dpkg-query --show --showformat '${Package}\n' 'python3*-pip*' 'python3*-setuptools*' 'python3*-venv' \
      python3-pkg-resources python3-wheel 2>/dev/null || true; } >/tmp/installers \
    && xargs --no-run-if-empty --arg-file /tmp/installers dpkg --purge --force-depends \
    && find / -xdev -perm /6000 -type f -exec chmod a-s {} + \
    && find /usr/share/doc -type f ! -name copyright -delete \
    && rm -rf /usr/share/locale /usr/share/man /usr/share/info /usr/share/lintian /var/lib/apt/lists /var/cache/apt \
       /var/cache/debconf /var/log/* /tmp/* /root/.cache /usr/local/lib/python3*/site-packages/* \
       /usr/local/lib/python3*/ensurepip /usr/local/bin/pip*

# hadolint ignore=DL3006
FROM ${BASE} AS build
# binutils has `strip`. Its version does not matter, and is not part of the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/image/slim.py /

# The dependencies, as a layer that changes with them alone; packages without code stand for what requires them.
FROM build AS dependencies
ARG EXTRAS=checksum,prometheus,tracing
COPY constraints.txt ./
COPY client/pyproject.toml client/
COPY client/mixserve_client/version.py client/mixserve_client/
# --only-binary: this image has no compiler.
RUN --mount=type=cache,target=/root/.cache/pip \
    touch client/LICENSE client/README.md \
    && pip wheel --no-deps --wheel-dir /wheels ./client \
    && python -m venv --without-pip /opt/mixserve \
    && pip --python /opt/mixserve/bin/python install --no-compile --only-binary :all: --constraint constraints.txt \
       "$(echo /wheels/mixserve_client-*.whl)[$EXTRAS]" \
    && python /slim.py /opt/mixserve

FROM build AS code
ARG VERSION=0.1.0
COPY client client
# The label `version` is that of the code, or no wheel of that name is found.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels ./client \
    && python -m venv --without-pip /opt/mixserve \
    && pip --python /opt/mixserve/bin/python install --no-compile --no-deps --root /layer \
       "/wheels/mixserve_client-$VERSION-py3-none-any.whl" \
    && python /slim.py /layer/opt/mixserve

# From nothing: what the first stage took away would else still be there, in a layer below.
FROM scratch
# hadolint ignore=DL3067
COPY --from=root / /
COPY --from=dependencies /opt/mixserve /opt/mixserve
COPY --from=code /layer /
# For volumes with a trainer's checkpoints.
RUN install --directory --owner 10001 --group 10001 /checkpoints
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="mixserve-client" \
      org.opencontainers.image.description="Client of mixserve: reproducible batches of a data mixture, as NumPy arrays" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/deploy.md"
ENV PATH=/opt/mixserve/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8
# The server's user: processes of one user share memory.
USER 10001:10001
WORKDIR /trainer
# No server, nothing to ask.
HEALTHCHECK NONE
CMD ["python"]
