//! `redrive dead-letters`.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Subcommand;
use hyper::{
    Method,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    UsageError,
    http::{Endpoint, request},
    output::{Table, print_json},
    problem::Problem,
    runtime,
    settings::ConfigFile,
};
use crate::config::Admin;

/// See the tasks that a person must look at
///
/// Asks the admin API of a running Redrive, at the configured `ops.listen`.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Where to ask, in place of the configured `ops.listen`
    #[arg(long, value_name = "http://HOST:PORT|unix:/PATH", global = true)]
    url: Option<Endpoint>,
    /// File with the bearer token, in place of the configured `admin.token_file`
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    file: ConfigFile,
}

#[derive(Subcommand)]
enum Command {
    /// List dead letters, newest first
    List {
        /// The most to list
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: usize,
    },
    /// Show everything that is known about one
    Show {
        /// The task's id
        id: String,
    },
}

const EXAMPLES: &str = "\
Examples:
  redrive dead-letters list
  redrive dead-letters list --limit 1000 --json
  redrive dead-letters show 01928c5e-8f6a-7c3e-9d0b-5a4f3e2d1c0b

Exit status: 0 done, 1 not there or not answered, 2 wrong configuration or usage.";

/// The most that the server hands out at a time.
const PAGE: usize = 500;

/// The first call waits until the server has read its dead letters, which may take 10 s.
const TIMEOUT: Duration = Duration::from_secs(30);

pub fn run(args: Args) -> anyhow::Result<()> {
    let config = args.file.load()?.config;
    let admin = Admin { token_file: args.token_file.or(config.admin.token_file) };
    let client = Client {
        endpoint: args.url.unwrap_or_else(|| Endpoint::of_listener(config.ops.listen)),
        headers: authorization(&admin)?,
    };
    match args.command {
        Command::List { limit } => {
            let items = runtime()?.block_on(client.list(limit))?;
            if args.json { print_json(&items) } else { print_table(&items) }
        }
        Command::Show { id } => {
            let letter = runtime()?.block_on(client.show(&id))?;
            if args.json { print_json(&letter) } else { print_members(&letter) }
        }
    }
}

fn authorization(admin: &Admin) -> anyhow::Result<Vec<(HeaderName, HeaderValue)>> {
    let Some(token) = admin.read_token().map_err(|error| UsageError(format!("{:#}", anyhow::Error::from(error))))?
    else {
        return Ok(Vec::new());
    };
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).expect("a token is printable ASCII");
    value.set_sensitive(true);
    Ok(vec![(AUTHORIZATION, value)])
}

struct Client {
    endpoint: Endpoint,
    headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next_cursor: Option<String>,
}

impl Client {
    /// At most `limit` dead letters, however many pages that takes.
    async fn list(&self, limit: usize) -> anyhow::Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut cursor = None;
        while items.len() < limit {
            let page = (limit - items.len()).min(PAGE);
            let after = cursor.map(|cursor: String| format!("&cursor={}", escaped(&cursor))).unwrap_or_default();
            let body = self.get(&format!("/admin/v1/dead-letters?limit={page}{after}")).await?;
            let page: Page = serde_json::from_slice(&body).context("the list cannot be understood")?;
            items.extend(page.items);
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        Ok(items)
    }

    async fn show(&self, id: &str) -> anyhow::Result<Value> {
        let body = self.get(&format!("/admin/v1/dead-letters/{}", escaped(id))).await?;
        serde_json::from_slice(&body).context("the dead letter cannot be understood")
    }

    async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        let answer = request(&self.endpoint, Method::GET, path, &self.headers, Bytes::new(), TIMEOUT).await?;
        if !answer.status.is_success() {
            anyhow::bail!("{} answers {}: {}", self.endpoint, answer.status.as_u16(), Problem::of(&answer));
        }
        Ok(answer.body)
    }
}

fn print_table(items: &[Value]) -> anyhow::Result<()> {
    let mut table = Table::new(["ID", "TARGET", "REASON", "ATTEMPTS", "LAST ERROR AT", "CODE", "MESSAGE"]);
    for item in items {
        let cells =
            ["id", "target", "reason", "attempts", "last_error_at", "code", "message"].map(|name| cell(&item[name]));
        table.row(cells.each_ref().map(String::as_str));
    }
    Ok(table.print()?)
}

fn print_members(letter: &Value) -> anyhow::Result<()> {
    let members = letter.as_object().context("the dead letter is not an object")?;
    let mut table = Table::new(["FIELD", "VALUE"]);
    for (name, value) in members {
        table.row([name, &cell(value)]);
    }
    Ok(table.print()?)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// Percent-encodes whatever could end a path's segment or a query's value.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::http::testing::Server, *};

    fn client(server: &Server) -> Client {
        Client { endpoint: server.endpoint().clone(), headers: Vec::new() }
    }

    #[tokio::test]
    async fn list_goes_on_from_page_to_page() {
        let server = Server::tcp().await;
        let page: Vec<Value> = (0..500).map(|id| serde_json::json!({"id": id.to_string()})).collect();
        server.answer(200, &[], serde_json::json!({"items": page, "next_cursor": "a b&c"}).to_string());
        server.answer(200, &[], r#"{"items": [{"id": "500"}]}"#);
        let items = client(&server).list(600).await.expect("both pages are answered");
        assert_eq!(items.len(), 501);
        let paths: Vec<_> = server.requests().into_iter().map(|asked| asked.path).collect();
        assert_eq!(paths, ["/admin/v1/dead-letters?limit=500", "/admin/v1/dead-letters?limit=100&cursor=a%20b%26c"]);
    }

    #[tokio::test]
    async fn what_is_not_there_says_so() {
        let server = Server::tcp().await;
        server.answer(404, &[], r#"{"title": "Unknown task", "detail": "no dead letter has this id"}"#);
        let error = client(&server).show("a/b").await.expect_err("it is not there");
        assert!(error.to_string().ends_with("answers 404: no dead letter has this id"), "{error}");
        assert_eq!(server.requests()[0].path, "/admin/v1/dead-letters/a%2Fb");
    }

    #[tokio::test]
    async fn token_goes_along() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "0123456789abcdef\n").expect("it can be written");
        let admin = Admin { token_file: Some(file.path().into()) };
        let server = Server::tcp().await;
        server.answer(200, &[], "{}");
        let headers = authorization(&admin).expect("the token can be read");
        let client = Client { headers, ..client(&server) };
        client.show("a").await.expect("it is answered");
        assert_eq!(server.requests()[0].headers[AUTHORIZATION], "Bearer 0123456789abcdef");
    }
}
