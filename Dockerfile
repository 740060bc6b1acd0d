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
RUN useradd --create-home --uid 1000 stars && install -d -o stars /cache /work
WORKDIR /opt/stars-engine
ARG EXTRAS=local,grammar
# These files alone decide which packages are needed. The project's own packages are empty at first, so that
# a change of the source installs only them again.
COPY pyproject.toml LICENSE constraints.txt ./
RUN mkdir stars_engine langchain_stars llamaindex_stars \
    && touch README.md stars_engine/__init__.py langchain_stars/__init__.py llamaindex_stars/__init__.py

FROM base AS cpu
RUN pip install "$(grep ^torch== constraints.txt)" --index-url https://download.pytorch.org/whl/cpu \
    && pip install -c constraints.txt ".[${EXTRAS}]"
COPY README.md ./
COPY stars_engine stars_engine
COPY langchain_stars langchain_stars
COPY llamaindex_stars llamaindex_stars
RUN pip install --no-deps --force-reinstall .
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["stars"]
CMD ["--help"]

# pip's torch for Linux brings the CUDA libraries; the host needs the NVIDIA container toolkit.
FROM base AS cuda
RUN pip install -c constraints.txt ".[${EXTRAS}]"
COPY README.md ./
COPY stars_engine stars_engine
COPY langchain_stars langchain_stars
COPY llamaindex_stars llamaindex_stars
RUN pip install --no-deps --force-reinstall .
USER 1000
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["stars"]
CMD ["--help"]
