//! The documentation under `/docs/`: Swagger UI, embedded, without a request to anywhere else.

use std::sync::Arc;

use axum::{
    Router,
    http::{HeaderValue, header},
};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa_swagger_ui::{Config, SwaggerUi};

use super::State;

/// Swagger UI sets styles from its scripts; everything else comes from this server.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

pub(super) fn routes() -> Router<Arc<State>> {
    let policy = HeaderValue::from_static(POLICY);
    Router::from(SwaggerUi::new("/docs").config(Config::from("/openapi.json")))
        .layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, policy))
}
