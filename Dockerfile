# syntax=docker/dockerfile:1
# A static binary in an image without anything else.

FROM docker.io/library/rust:1.95-bookworm AS build
ARG TARGETARCH
RUN apt-get update \
    && apt-get install -y --no-install-recommends musl-tools=1.2.3-1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN case "${TARGETARCH:-amd64}" in \
        amd64) target=x86_64-unknown-linux-musl ;; \
        arm64) target=aarch64-unknown-linux-musl ;; \
        *) echo "no build for ${TARGETARCH}" >&2; exit 1 ;; \
    esac \
    && rustup target add "$target" \
    && cargo build --release --locked --target "$target" \
    && install -D "target/$target/release/redrive" /out/redrive \
    && install -d -m 0700 -o 65532 -g 65532 /out/data

FROM gcr.io/distroless/static-debian12:nonroot
LABEL org.opencontainers.image.title="redrive" \
      org.opencontainers.image.description="Keeps the Redis writes that a service could not make, and makes them later" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/redrive /usr/local/bin/redrive
COPY --from=build --chown=65532:65532 /out/data /var/lib/redrive
ENV REDRIVE_DATA_DIR=/var/lib/redrive
USER 65532:65532
VOLUME /var/lib/redrive
EXPOSE 7379 7380
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/usr/local/bin/redrive", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/redrive"]
CMD ["serve"]
