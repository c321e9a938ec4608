# syntax=docker/dockerfile:1
# Two images from one file:
#   docker build --target api    -t longtake-api .       the HTTP side, slim, no torch
#   docker build --target worker -t longtake-worker .    the GPU side; torch's wheels bring their own CUDA libraries

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /srv/longtake
# Named by its number below, so that Kubernetes can see that it is not root.
RUN useradd --system --uid 10001 --home-dir /var/lib/longtake --create-home longtake
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app ./app

FROM base AS api
RUN mkdir worker && touch worker/__init__.py \
    && pip install --constraint constraints.txt . \
    && rm -rf worker
USER 10001
ENV LONGTAKE_HOST=0.0.0.0 LONGTAKE_PORT=8000 LONGTAKE_DATA_DIR=/var/lib/longtake
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# SIGTERM ends open event streams at once; clients resume on another replica.
STOPSIGNAL SIGTERM
CMD ["longtake", "api"]

FROM base AS worker
# TORCH_INDEX: an index to take torch from, and nothing else, for another CUDA version than the default index has.
ARG TORCH_INDEX=""
RUN pip install --constraint constraints.txt --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY worker ./worker
RUN pip install --constraint constraints.txt '.[worker]'
USER 10001
ENV LONGTAKE_DATA_DIR=/var/lib/longtake HF_HOME=/var/lib/longtake/huggingface
# `video` is for the encoders of the GPU (LONGTAKE_CODEC=h264_nvenc and the like); a container has it on request only.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
# SIGTERM hands running videos over within one forward.
STOPSIGNAL SIGTERM
CMD ["longtake", "worker"]
