# On CPUs:         docker build -t megalite .
# On A100, H100:   docker build -t megalite --build-arg BASE=nvidia/cuda:13.0.2-devel-ubuntu24.04 \
#                    --build-arg TORCH=torch==2.14.1 --build-arg INDEX=https://download.pytorch.org/whl/cu130 .
# On V100, too:    docker build -t megalite --build-arg BASE=nvidia/cuda:12.6.3-devel-ubuntu24.04 \
#                    --build-arg TORCH=torch==2.10.0 --build-arg INDEX=https://download.pytorch.org/whl/cu126 .
ARG BASE=debian:bookworm-slim
FROM $BASE
ARG TORCH=torch==2.13.0
ARG INDEX=https://download.pytorch.org/whl/cpu
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    g++ python3 python3-dev python3-venv && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir --index-url "$INDEX" "$TORCH"
ENV PATH=/opt/venv/bin:$PATH
COPY . /opt/megalite
RUN pip install --no-cache-dir "/opt/megalite[data,gpu]"
WORKDIR /work
ENTRYPOINT ["megalite"]
