# Podium's two images: `make images` builds both, images/README.md says how to build them elsewhere.
#
#   steps    podium/python-steps     what only reads and writes the store and MLflow: everything but PyTorch, no compiler
#   trainer  podium/python-trainer   the same with PyTorch, and the compiler that torch.compile calls
#
# Layers from what changes least to what changes most: base, packages, compiler, PyTorch, the code. A change of the code
# builds a wheel and installs it into both, and nothing below. No entry point: Kubernetes gives every command in full.
#
# Secrets (mounted while a layer is built, in none of them): `fetch`, a shell file with the package index's address;
# `ca`, certificates in PEM; `apt`, a sources.list. Without them the addresses are the tools' own.
ARG PYTHON_IMAGE=python:3.11-slim

# ---- What both images start from: Python, the user, and folders that can be written under a read-only root.
FROM ${PYTHON_IMAGE} AS base
# /tmp is the one scratch: Kubernetes mounts a volume there, and everything below is made when first needed.
ENV PATH=/opt/podium/bin:$PATH \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 podium \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin podium \
    && rm -f /var/log/lastlog /var/log/faillog \
    && python3 -m venv --without-pip /opt/podium
WORKDIR /tmp

# ---- The installer and what builds a wheel; in no image.
FROM base AS installer
RUN python3 -m venv /opt/build
COPY locks/uv.txt locks/build.txt /locks/
RUN --mount=type=secret,id=fetch --mount=type=secret,id=ca \
    if [ -e /run/secrets/fetch ]; then . /run/secrets/fetch; fi \
    && for set in uv build; do \
        /opt/build/bin/python -m pip install -q --no-cache-dir --disable-pip-version-check --root-user-action=ignore \
            --no-deps --require-hashes -r /locks/$set.txt; \
    done
COPY images/install.sh /opt/build/bin/install

FROM installer AS wheel
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
COPY trainer /source/trainer
COPY components /source/components
COPY pipelines /source/pipelines
RUN cd /source \
    && /opt/build/bin/python -c "from setuptools import build_meta; build_meta.build_wheel('/wheel')" > /dev/null

# ---- What the steps need.
FROM base AS steps-packages
RUN --mount=type=bind,from=installer,source=/opt/build,target=/opt/build \
    --mount=type=bind,source=locks/steps.txt,target=/locks/steps.txt \
    --mount=type=cache,target=/var/cache/uv,id=podium-uv --mount=type=secret,id=fetch --mount=type=secret,id=ca \
    /opt/build/bin/install -r /locks/steps.txt

# The lock's torch is the CUDA build. Another one: a requirements file with hashes in locks/, and TORCH=its name.
FROM scratch AS torch-set
ARG TORCH=torch.txt
COPY locks/${TORCH} /torch.txt

# ---- What trials need. PyTorch lies below the steps' packages, which both images so hold for themselves: they are a
# fifth of its size and change ten times as often.
FROM base AS trainer-packages
# torch.compile writes C++ and compiles it with Python's headers, which an official Python image has.
RUN --mount=type=secret,id=apt \
    if [ -e /run/secrets/apt ]; then from="-o Dir::Etc::sourcelist=/run/secrets/apt -o Dir::Etc::sourceparts=-"; fi \
    && apt-get $from update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get $from install -y -qq --no-install-recommends gcc g++ > /dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/ldconfig/* /var/log/apt /var/log/dpkg.log
RUN --mount=type=bind,from=installer,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=torch-set,source=/torch.txt,target=/locks/torch.txt \
    --mount=type=cache,target=/var/cache/uv,id=podium-uv --mount=type=secret,id=fetch --mount=type=secret,id=ca \
    /opt/build/bin/install -r /locks/torch.txt
RUN --mount=type=bind,from=installer,source=/opt/build,target=/opt/build \
    --mount=type=bind,source=locks/steps.txt,target=/locks/steps.txt \
    --mount=type=bind,source=locks/trainer.txt,target=/locks/trainer.txt \
    --mount=type=cache,target=/var/cache/uv,id=podium-uv --mount=type=secret,id=fetch --mount=type=secret,id=ca \
    /opt/build/bin/install -r /locks/steps.txt -r /locks/trainer.txt

# ---- The images: the code over the packages, then what is only said about them.
FROM steps-packages AS steps
RUN --mount=type=bind,from=installer,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /opt/build/bin/install /wheel/*.whl
COPY images/selfcheck.py /opt/podium/share/selfcheck.py
USER 10001:10001
CMD ["podium", "--help"]
ARG VERSION
ARG COMMIT=unknown
ENV PODIUM_IMAGE=podium/python-steps:${VERSION} PODIUM_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="Podium steps" \
      org.opencontainers.image.description="Podium's pipeline steps that train nothing, its command line, and an MLflow server" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${COMMIT} \
      org.opencontainers.image.licenses=MIT

FROM trainer-packages AS trainer
RUN --mount=type=bind,from=installer,source=/opt/build,target=/opt/build \
    --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    /opt/build/bin/install /wheel/*.whl
COPY images/selfcheck.py /opt/podium/share/selfcheck.py
ENV TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor TRITON_CACHE_DIR=/tmp/triton
USER 10001:10001
CMD ["podium", "--help"]
ARG VERSION
ARG COMMIT=unknown
ENV PODIUM_IMAGE=podium/python-trainer:${VERSION} PODIUM_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="Podium trainer" \
      org.opencontainers.image.description="Podium's training runs: PyTorch, and a compiler for torch.compile" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${COMMIT} \
      org.opencontainers.image.licenses=MIT
