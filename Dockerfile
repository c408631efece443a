# The image: one static binary, no shell, an unprivileged user.
#
#   make image
#   docker run --rm --network host -v redrive:/var/lib/redrive redrive:0.1.0

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
# ring compiles C for the target.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends musl-tools \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin redrive --target "$(uname -m)-unknown-linux-musl" \
    && cp "target/$(uname -m)-unknown-linux-musl/release/redrive" /redrive \
    && mkdir /empty

# Has certificates of authorities, time zones and the user 65532, and nothing that runs.
FROM gcr.io/distroless/static-debian12:nonroot
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="redrive" \
      org.opencontainers.image.description="Keeps the Redis writes that a service could not make, and makes them later" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /redrive /redrive
COPY --from=build /src/LICENSE /LICENSE
# A volume takes over the owner of the directory under it.
COPY --from=build --chown=65532:65532 /empty /var/lib/redrive
ENV REDRIVE_DATA_DIR=/var/lib/redrive/data
VOLUME ["/var/lib/redrive"]
USER 65532:65532
# Tasks, and probes with metrics and the admin API. Both are on loopback unless settings say otherwise.
EXPOSE 7379 7380
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["/redrive", "healthcheck"]
ENTRYPOINT ["/redrive"]
CMD ["serve"]
