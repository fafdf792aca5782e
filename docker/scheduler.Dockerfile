# The scheduler's image: one static program that needs nothing around it. `docker/build` builds it; by hand, from the root of the clone:
#     docker build --file docker/scheduler.Dockerfile --tag REGISTRY/scalable-scheduler:VERSION .
ARG RUST=docker.io/library/rust:1.95.0-slim-bookworm
ARG BASE=gcr.io/distroless/static-debian12

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
COPY --from=build /scalable-scheduler /usr/local/bin/scalable-scheduler
# What an init container puts into worker pods: so the two never differ in version.
COPY --from=build /scalable-worker /usr/local/bin/scalable-worker
COPY LICENSE /usr/share/doc/scalable/LICENSE
USER 10001:10001
# 8786: clients and workers, 8787: monitoring, 8788: objects.
EXPOSE 8786 8787 8788
ENTRYPOINT ["/usr/local/bin/scalable-scheduler"]
