# Training, prediction and export on CPUs. Build and run:
#   docker build -t denseclip_d2 . && docker run --rm -it -v "$PWD/output:/denseclip_d2/output" denseclip_d2
# The image is 4 GB smaller with --build-arg PIP_EXTRA_INDEX_URL=..., PyTorch's index of wheels for CPUs (pytorch.org names it).
FROM python:3.12-slim-bookworm
ARG PIP_EXTRA_INDEX_URL=
# g++ is for torch.compile.
RUN apt-get update && apt-get install --no-install-recommends --yes g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /denseclip_d2
COPY . .
RUN PIP_NO_CACHE_DIR=1 make install
ENV PATH=/denseclip_d2/.venv/bin:$PATH
CMD ["make", "demo"]
