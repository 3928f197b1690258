# codegen-jax for TPU hosts, with gs:// paths. Build it from the root of a checkout:
#
#     docker build --file docker/tpu.Dockerfile --tag IMAGE .
#
# A container's arguments go to codegen-jax: scripts/jobset.yaml runs this image on GKE. It runs as root, since the
# permissions of a host's TPU devices are not known here.
FROM python:3.11-slim-bookworm

# Extras in setup.cfg; to add some: --build-arg EXTRAS=tpu,gcs,wandb
ARG EXTRAS=tpu,gcs
COPY . /src
RUN pip install --no-cache-dir "/src[$EXTRAS]"

WORKDIR /work
ENTRYPOINT ["codegen-jax"]
