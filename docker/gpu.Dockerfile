# codegen-jax for hosts with NVIDIA GPUs. CUDA comes with the Python packages; the host provides the driver and NVIDIA's
# container toolkit. Build it from the root of a checkout:
#
#     docker build --file docker/gpu.Dockerfile --tag IMAGE .
#     docker run --gpus all --user "$(id -u):$(id -g)" --volume "$PWD:/work" IMAGE train CONFIG.yaml
#
# A container's arguments go to codegen-jax.
FROM python:3.11-slim-bookworm

# Extras in setup.cfg; to add some: --build-arg EXTRAS=cuda,gcs,wandb
ARG EXTRAS=cuda
COPY . /src
RUN pip install --no-cache-dir "/src[$EXTRAS]"

# Runs as any user; caches (compiled programs, downloads from the hub) go to HOME.
ENV HOME=/home/codegen
RUN mkdir --mode 1777 "$HOME" /work
USER 1000:1000

WORKDIR /work
ENTRYPOINT ["codegen-jax"]
