# A worker's image, and the pattern for one with a model in it. From the root of the clone:
#     docker build -f docker/worker.Dockerfile -t scalable-worker .
# Tasks run in this image, so it has a shell and can be built upon:
#     FROM scalable-worker
#     USER root
#     RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
#     USER 65532:65532
FROM docker.io/library/rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --no-install-recommends -y gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The toolchain is the image's: rust-toolchain.toml would fetch clippy and rustfmt, which nothing here needs.
ENV RUSTUP_TOOLCHAIN=1.95.0
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p scalable-worker \
    && install -D target/release/scalable-worker /out/scalable-worker

FROM docker.io/library/debian:bookworm-slim
COPY --from=build /out/scalable-worker /usr/local/bin/scalable-worker
COPY LICENSE /usr/share/doc/scalable/LICENSE
RUN groupadd --gid 65532 scalable \
    && useradd --uid 65532 --gid scalable --home-dir /work --create-home --shell /usr/sbin/nologin scalable
WORKDIR /work
USER 65532:65532
# The agent is process 1: it reaps what tasks leave behind, and SIGTERM drains it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/scalable-worker"]
