# A worker's image, and one to build a model's upon:
#     FROM REGISTRY/scalable-worker:VERSION
#     USER root
#     RUN apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*
#     USER 10001:10001
# `docker/build` builds it; by hand, from the root of the clone:
#     docker build --file docker/worker.Dockerfile --tag REGISTRY/scalable-worker:VERSION .
ARG RUST=docker.io/library/rust:1.95.0-slim-bookworm
# Anything with /bin/sh and coreutils.
ARG BASE=docker.io/library/debian:bookworm-slim

# The same in every image's file, so that it is compiled once for all of them.
FROM ${RUST} AS build
WORKDIR /src
COPY . .
# The toolchain is the image's: rust-toolchain.toml would fetch clippy and rustfmt, which nothing here needs.
ENV RUSTUP_TOOLCHAIN=1.95.0 RUSTFLAGS="-C target-feature=+crt-static"
# With a target named, procedural macros are still built as what the compiler can load.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && cargo build --release --locked --target "$target" -p scalable-cli -p scalable-scheduler -p scalable-worker \
    && cp "target/$target/release/scalable" "target/$target/release/scalable-scheduler" "target/$target/release/scalable-worker" /

FROM ${BASE}
COPY --from=build /scalable-worker /usr/local/bin/scalable-worker
COPY LICENSE /usr/share/doc/scalable/LICENSE
# No tool for users and groups is asked of the base.
RUN echo 'scalable:x:10001:' >>/etc/group \
    && echo 'scalable:x:10001:10001::/work:/usr/sbin/nologin' >>/etc/passwd \
    && mkdir /work \
    && chown 10001:10001 /work
ENV HOME=/work
WORKDIR /work
USER 10001:10001
EXPOSE 8788
# The agent is process 1: it reaps what tasks leave behind, and SIGTERM drains it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/scalable-worker"]
