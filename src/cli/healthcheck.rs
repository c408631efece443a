//! `redrive healthcheck`.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;

use super::{
    http::{Endpoint, request},
    output::print_line,
    problem::Problem,
    runtime,
    settings::{ConfigFile, duration},
};

/// Ask a running Redrive whether it can take a task
///
/// For images without a shell: the HEALTHCHECK of a Dockerfile, or an exec probe. Asks `/readyz` of the configured
/// `ops.listen`, which stays ready while Redis is down: that is what Redrive is for.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Where to ask, in place of the configured `ops.listen`
    #[arg(long, value_name = "http://HOST:PORT|unix:/PATH")]
    url: Option<Endpoint>,
    /// How long to wait for the answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    file: ConfigFile,
}

const EXAMPLES: &str = "\
Examples:
  redrive healthcheck
  redrive healthcheck --url unix:/run/redrive.sock

Exit status: 0 ready, 1 not ready or not there, 2 wrong configuration or usage.";

pub fn run(args: Args) -> anyhow::Result<()> {
    let endpoint = match args.url {
        Some(url) => url,
        None => Endpoint::of_listener(args.file.load()?.config.ops.listen),
    };
    runtime()?.block_on(check(&endpoint, args.timeout))
}

async fn check(endpoint: &Endpoint, timeout: Duration) -> anyhow::Result<()> {
    let answer = request(endpoint, Method::GET, "/readyz", &[], Bytes::new(), timeout).await?;
    if !answer.status.is_success() {
        anyhow::bail!("{endpoint} is not ready ({}): {}", answer.status.as_u16(), Problem::of(&answer));
    }
    Ok(print_line("ready")?)
}

#[cfg(test)]
mod tests {
    use super::{super::http::testing::Server, *};

    #[tokio::test]
    async fn status_decides() {
        let server = Server::tcp().await;
        server.answer(200, &[], "ready");
        server.answer(503, &[], r#"{"title":"Not ready","detail":"the journal is full"}"#);
        let timeout = Duration::from_secs(10);
        check(server.endpoint(), timeout).await.expect("it is ready");
        let error = check(server.endpoint(), timeout).await.expect_err("it is not ready");
        assert!(error.to_string().ends_with("is not ready (503): the journal is full"), "{error}");
        assert_eq!(server.requests()[1].path, "/readyz");
    }
}
