//! The API document: OpenAPI 3.1, collected from the handlers, committed as `openapi/openapi.json`, served from there.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use utoipa::{
    OpenApi,
    openapi::{
        Components, Server,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{admin, batch, ops, status, submit};

/// The document as it is committed. A running sidecar does not collect it: that takes half a megabyte.
pub const COMMITTED: &str = include_str!("../../openapi/openapi.json");

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Redrive",
        description = "Takes the Redis writes that a service could not make, keeps them safe, and makes them later.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "http://127.0.0.1:7379", description = "The data plane.")),
    tags(
        (name = "tasks", description = "Handing tasks over, and asking what became of them. Data plane."),
        (name = "probes", description = "What orchestrators and scrapers ask. Ops plane."),
        (name = "admin", description = "What operators look at. Ops plane."),
    ),
    paths(submit::submit_task, batch::submit_batch, status::get_task),
)]
struct DataPlane;

#[derive(OpenApi)]
#[openapi(paths(
    ops::get_liveness,
    ops::get_readiness,
    ops::get_startup,
    ops::get_metrics,
    ops::get_version,
    admin::get_overview,
    admin::list_breakers,
    admin::list_partitions,
    admin::list_dead_letters,
    admin::get_dead_letter,
))]
struct OpsPlane;

/// The document of both planes, collected from the handlers: what [`COMMITTED`] must be.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = DataPlane::openapi();
    let mut ops = OpsPlane::openapi();
    for path in ops.paths.paths.values_mut() {
        path.servers = Some(vec![Server::new("http://127.0.0.1:7380")]);
    }
    document.merge(ops);
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("The token of `admin.token_file`. Needed for `/admin` where one is configured."))
        .build();
    let components = document.components.get_or_insert_with(Components::new);
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    document
}

/// The committed document.
pub(super) async fn get_document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], COMMITTED).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_in_the_document() {
        let source = include_str!("../api.rs");
        let functions = source.split_once("fn data_routes()").expect("the routes are there").1;
        let routes: Vec<&str> =
            functions.split(".route(\"").skip(1).filter_map(|rest| Some(rest.split_once('"')?.0)).collect();
        let document = document();
        assert_eq!(routes.len(), document.paths.paths.len(), "{routes:?}");
        assert!(routes.iter().all(|route| document.paths.paths.contains_key(*route)), "{routes:?}");
    }

    #[test]
    fn committed_document_is_the_current_one() {
        let current = document().to_pretty_json().expect("the document is serialisable") + "\n";
        if std::env::var_os("REDRIVE_BLESS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi/openapi.json");
            std::fs::write(path, &current).expect("the file can be written");
            return;
        }
        assert!(COMMITTED == current, "openapi/openapi.json is out of date: REDRIVE_BLESS=1 makes this test write it");
    }
}
