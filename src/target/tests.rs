//! The target against real Redis servers, healthy and broken in every way that can be produced.

use super::{
    testing::{Link, RedisServer, Reply},
    *,
};
use crate::retry::{Executed, FailureClass, ReasonClass};

mod connecting;
mod inspecting;
mod once;
mod outages;
mod past;
mod probing;
mod tls;
mod units;
mod versions;

const DONE: Result<Done, Failure> = Ok(Done::Applied);

fn target(server: &RedisServer) -> Target {
    target_at(&server.url())
}

fn target_at(url: &str) -> Target {
    Target::try_new("test", Config::new(url)).expect("the URL is fine")
}

async fn connect(server: &RedisServer) -> Connection {
    target(server).connect().await.expect("the server is up")
}

/// A batch for a target that is configured as ours are.
fn new_batch() -> Batch {
    target_at("redis://127.0.0.1").batch()
}

/// A command given as words.
fn push(batch: &mut Batch, command: &[&str]) {
    batch.push_command(command[0], command[1..].iter().map(|arg| arg.as_bytes()));
}

/// An atomic unit of commands given as words.
fn push_atomic(batch: &mut Batch, commands: &[&[&str]]) {
    batch.push_atomic(commands.iter().map(|command| (command[0], command[1..].iter().map(|arg| arg.as_bytes()))));
}

fn push_once(batch: &mut Batch, marker: &Marker, commands: &[&[&str]]) {
    batch.push_once(marker, commands.iter().map(|command| (command[0], command[1..].iter().map(|arg| arg.as_bytes()))));
}

fn push_versioned(batch: &mut Batch, fence: &Fence<'_>, key: &str, commands: &[&[&str]]) {
    batch.push_versioned(
        fence,
        key.as_bytes(),
        commands.iter().map(|command| (command[0], command[1..].iter().map(|arg| arg.as_bytes()))),
    );
}

fn push_script(batch: &mut Batch, source: &str, keys: &[&str], args: &[&str]) {
    batch.push_script(source.as_bytes(), keys.iter().map(|key| key.as_bytes()), args.iter().map(|arg| arg.as_bytes()));
}

/// Executes one command.
async fn run(connection: &mut Connection, command: &[&str]) -> Result<Done, Failure> {
    let mut batch = new_batch();
    push(&mut batch, command);
    only(connection.execute(batch).await)
}

fn only(mut outcome: BatchResult) -> Result<Done, Failure> {
    assert_eq!(outcome.results.len(), 1);
    outcome.results.remove(0)
}

/// What a failure says, in short.
fn says(result: &Result<Done, Failure>) -> (FailureClass, Executed, &str) {
    let failure = result.as_ref().expect_err("it was to fail");
    (failure.class, failure.executed, &failure.code)
}
