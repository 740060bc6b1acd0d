# syntax=docker/dockerfile:1
# docker build --target cpu -t stars .     docker run --rm stars demo
# docker build --target cuda -t stars-cuda .     docker run --rm --gpus all stars-cuda doctor
#
# Models of the hub and calibrations are cached in /cache: mount a volume there to keep them.

FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    STARS_CACHE_DIR=/cache/stars
WORKDIR /opt/stars-engine
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY stars_engine stars_engine
COPY langchain_stars langchain_stars
COPY llamaindex_stars llamaindex_stars
ARG EXTRAS=local,grammar

FROM base AS cpu
RUN pip install "$(grep ^torch== constraints.txt)" --index-url https://download.pytorch.org/whl/cpu \
    && pip install -c constraints.txt ".[${EXTRAS}]"
RUN useradd --create-home --uid 1000 stars && install -d -o stars /cache /work
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["stars"]
CMD ["--help"]

# pip's torch for Linux brings the CUDA libraries; the host needs the NVIDIA container toolkit.
FROM base AS cuda
RUN pip install -c constraints.txt ".[${EXTRAS}]"
RUN useradd --create-home --uid 1000 stars && install -d -o stars /cache /work
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["stars"]
CMD ["--help"]
