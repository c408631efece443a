//! `redrive openapi`.

use super::output::print_text;

/// Print the description of the HTTP API (OpenAPI 3.1, JSON)
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {}

const EXAMPLES: &str = "\
Examples:
  redrive openapi > openapi.json
  redrive openapi | jq '.paths | keys'";

pub fn run() -> anyhow::Result<()> {
    print_text(crate::api::openapi::COMMITTED)
}
