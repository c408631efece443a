//! `scripts/setup` and `scripts/kafka-jars` on machines that lack what they install: every program that it finds is a fake that notes its call.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A machine: nothing is installed beside the programs of its directory.
struct Machine {
    programs: TempDir,
}

struct Outcome {
    success: bool,
    calls: Vec<String>,
    errors: String,
}

impl Machine {
    /// A machine with Rust and one package manager, as this user.
    fn new(manager: &str, user: u32) -> Self {
        let machine = Self { programs: tempfile::tempdir().expect("a directory") };
        for tool in ["env", "sort", "tr"] {
            let real = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool)).into_iter().find(|path| path.exists());
            symlink(real.expect("it is everywhere"), machine.path(tool)).expect("a link");
        }
        // What would change the real machine when it is root who runs the test.
        machine.add(&["tee", "chmod", "rm"], "exit 0");
        machine.add(&["cargo"], "exit 0");
        machine.add(&["rustc"], r#"echo "${0%/*}""#);
        std::fs::create_dir(machine.path("bin")).expect("a directory");
        machine.add(&["bin/cargo-fmt", "bin/cargo-clippy"], "exit 0");
        machine.add(&["id"], &format!("echo {user}"));
        machine.add(&[manager], r#"echo "${0##*/} $*" >>"$CALLS""#);
        machine
    }

    fn path(&self, program: &str) -> PathBuf {
        self.programs.path().join(program)
    }

    fn add(&self, programs: &[&str], script: &str) {
        for program in programs {
            // By a process of its own: a child that another test forks meanwhile would inherit a file that is open for
            // writing here, and such a file cannot be executed.
            let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 755 "$0""#;
            let status = Command::new("sh").args(["-c", write]).arg(self.path(program)).arg(script).status();
            assert!(status.expect("a shell runs").success());
        }
    }

    fn set_up(&self) -> Outcome {
        self.run("scripts/setup")
    }

    fn run(&self, script: &str) -> Outcome {
        let calls = self.path("calls");
        let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(script))
            .env_clear()
            .env("PATH", self.programs.path())
            .env("HOME", self.programs.path())
            .env("CALLS", &calls)
            .output()
            .expect("the script runs");
        Outcome {
            success: output.status.success(),
            calls: std::fs::read_to_string(calls).unwrap_or_default().lines().map(str::to_owned).collect(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

#[test]
fn everything_missing_is_installed_with_apt_get() {
    let outcome = Machine::new("apt-get", 0).set_up();
    assert!(outcome.success, "{}", outcome.errors);
    assert_eq!(
        outcome.calls,
        [
            "apt-get update -qq",
            "apt-get install -y --no-install-recommends -qq -o DPkg::Lock::Timeout=300 \
             gcc libc6-dev make python3 python3-pip redis-server redis-tools util-linux",
        ]
    );
}

#[test]
fn everything_missing_is_installed_with_dnf_through_sudo() {
    let machine = Machine::new("dnf", 1000);
    machine.add(&["sudo"], r#"[ "$1" = -n ] && shift && "$@""#);
    let outcome = machine.set_up();
    assert!(outcome.success, "{}", outcome.errors);
    assert_eq!(outcome.calls, ["dnf install -y -q gcc make python3 python3-pip redis util-linux"]);
}

#[test]
fn everything_missing_is_installed_with_apk() {
    let outcome = Machine::new("apk", 0).set_up();
    assert!(outcome.success, "{}", outcome.errors);
    assert_eq!(outcome.calls, ["apk add --no-cache -q gcc make musl-dev py3-pip python3 redis setpriv"]);
}

#[test]
fn who_may_not_install_is_told_what_to_run() {
    let machine = Machine::new("apt-get", 1000);
    machine.add(&["make", "redis-server", "redis-cli", "redis-benchmark", "python3", "setpriv"], "exit 0");
    // Asks for a password, which nobody is there to type.
    machine.add(&["sudo"], "exit 1");
    let outcome = machine.set_up();
    assert!(!outcome.success);
    assert!(outcome.calls.is_empty(), "{:?}", outcome.calls);
    assert_eq!(outcome.errors, "setup: please run as root: apt-get install -y --no-install-recommends gcc libc6-dev\n");
}

#[test]
fn failed_installation_fails_the_set_up() {
    let machine = Machine::new("dnf", 0);
    machine.add(&["dnf"], "exit 1");
    let outcome = machine.set_up();
    assert!(!outcome.success);
    assert!(outcome.errors.starts_with("setup: please run as root: dnf install -y gcc make"), "{}", outcome.errors);
}

#[test]
fn nothing_is_done_where_everything_is_there_but_parts_of_rust() {
    let machine = Machine::new("apt-get", 1000);
    machine.add(&["make", "cc", "redis-server", "redis-cli", "redis-benchmark", "python3", "setpriv"], "exit 0");
    machine.add(&["rustup"], r#"echo "${0##*/} $*" >>"$CALLS""#);
    assert!(machine.set_up().calls.is_empty());

    std::fs::remove_file(machine.path("bin/cargo-fmt")).expect("it is there");
    let outcome = machine.set_up();
    assert!(outcome.success, "{}", outcome.errors);
    assert_eq!(outcome.calls, ["rustup component add rustfmt clippy"]);
}

#[test]
fn what_kafka_needs_is_named_where_it_may_not_be_installed() {
    let machine = Machine::new("apt-get", 1000);
    machine.add(&["flock", "sed"], "exit 0");
    machine.add(&["sudo"], "exit 1");
    let outcome = machine.run("scripts/kafka-jars");
    assert!(!outcome.success);
    assert_eq!(
        outcome.errors,
        "kafka-jars: please run as root: apt-get install -y --no-install-recommends default-jre-headless maven\n"
    );
}
