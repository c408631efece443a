//! What the tests drive: the real binary, real Redis servers, and a fault proxy between the two.
//!
//! Everything listens on free ports of the loopback, lives in a temporary directory, and ends with the test, however
//! the test ends.

use std::{
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

pub mod broker_proxy;
pub mod faults;
pub mod http;
#[allow(dead_code, reason = "shared with the tests of the library, which use the rest of it")]
#[path = "../../src/log/kafka/testing.rs"]
pub mod kafka;
pub mod proxy;
pub mod redis;
pub mod resp;
pub mod sidecar;
pub mod task;

pub use broker_proxy::BrokerProxy;
pub use faults::{Fault, Faults};
pub use http::Answer;
pub use proxy::Proxy;
pub use redis::Redis;
pub use sidecar::Sidecar;
pub use task::{first_occurrences, rpush, set, simple};

/// How long anything may take that happens at once on a machine with nothing else to do.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until there is something; fails the test with `what` when there is nothing for too long.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "still waiting for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Polls until it is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    wait_for(what, || is_so().then_some(()));
}

/// What makes a long test of a short one; `make soak` sets it.
pub fn number_from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("it is a number"))
}

/// Runs the real binary to its end, in a directory of its own.
pub fn run(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    redrive().args(args).current_dir(dir.path()).stdin(Stdio::null()).output().expect("the binary is built")
}

/// The real binary, in an environment without settings: what is set for the one who runs the tests is not set for it.
/// Its umask forbids nothing, so that what its files may be is its own doing.
fn redrive() -> Command {
    let mut command = mortal("sh");
    command.args(["-c", r#"umask 000; exec "$0" "$@""#, env!("CARGO_BIN_EXE_redrive")]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("REDRIVE_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG");
    command
}

/// A command whose process dies with the thread that starts it, also when that thread's process is killed.
fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}
