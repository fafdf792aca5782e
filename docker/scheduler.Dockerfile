# The scheduler's image. From the root of the clone:
#     docker build -f docker/scheduler.Dockerfile -t scalable-scheduler .
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
    cargo build --release --locked -p scalable-scheduler \
    && install -D target/release/scalable-scheduler /out/scalable-scheduler

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/scalable-scheduler /usr/local/bin/scalable-scheduler
COPY LICENSE /usr/share/doc/scalable/LICENSE
# 8786: clients and workers, 8787: monitoring.
EXPOSE 8786 8787
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/scalable-scheduler"]
