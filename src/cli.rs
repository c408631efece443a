//! The commands of the binary: what they take, what they print, how they end. Each has a file; what several share is
//! `http` (a small client), `settings` (the configuration) and `output`.
//!
//! Exit statuses are the same for all: 0 it was done, 2 wrong configuration or usage, 1 anything else, with one line
//! on standard error that says what. `check` counts what it finds in: 1 warnings, 2 errors.

use std::io;

use clap::{Parser, Subcommand};

use crate::config::ConfigError;

mod check;
mod completions;
mod config;
mod dead_letters;
mod demo;
mod healthcheck;
mod http;
mod openapi;
mod output;
mod problem;
mod progress;
mod serve;
mod settings;
mod submit;

const EXIT_STATUSES: &str = "Exit status: 0 done, 2 wrong configuration or usage, 1 anything else, with one line on \
                             standard error that says what.";

/// Keeps the Redis writes that a service could not make, and makes them later: in order, and only while they are
/// still true.
#[derive(Parser)]
#[command(name = "redrive", version, arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = EXIT_STATUSES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Args),
    Demo(demo::Args),
    Submit(Box<submit::Args>),
    DeadLetters(dead_letters::Args),
    Config(config::Args),
    Check(check::Args),
    Openapi(openapi::Args),
    Healthcheck(healthcheck::Args),
    Completions(completions::Args),
    /// Print the version
    Version,
}

/// The command line was understood, but asks for something that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

impl Cli {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve::run(args),
            Command::Demo(args) => demo::run(&args),
            Command::Submit(args) => submit::run(*args),
            Command::DeadLetters(args) => dead_letters::run(args),
            Command::Config(args) => config::run(args),
            Command::Check(args) => check::run(args),
            Command::Openapi(_) => openapi::run(),
            Command::Healthcheck(args) => healthcheck::run(args),
            Command::Completions(args) => completions::run(&args),
            Command::Version => Ok(output::print_line(&format!("redrive {}", env!("CARGO_PKG_VERSION")))?),
        }
    }

    /// The exit status of a command that ended so. Says on standard error what went wrong, if anything did.
    pub fn exit_status(result: anyhow::Result<()>) -> u8 {
        let Err(error) = result else { return 0 };
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::BrokenPipe
        {
            // Whoever read the output has seen enough, as `head` has.
            return 0;
        }
        // Several problems of a configuration are several lines; everything else is one.
        if let Some(error) = error.downcast_ref::<ConfigError>() {
            error.to_string().lines().for_each(output::tell);
            return 2;
        }
        output::tell(&format!("{error:#}"));
        if let Some(found) = error.downcast_ref::<check::Found>() {
            return found.exit_status();
        }
        if error.is::<UsageError>() { 2 } else { 1 }
    }
}

/// A runtime for a command: one thread, which is plenty for a client and for a sidecar.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_serve() {
        let mut command = Cli::command();
        let help = command.find_subcommand_mut("serve").expect("serve exists").render_long_help().to_string();
        for setting in crate::config::SETTINGS {
            assert!(
                help.contains(&format!("--{} ", setting.flag_name()))
                    || help.contains(&format!("--{}[", setting.flag_name())),
                "{}",
                setting.name
            );
            assert!(help.contains(&setting.env_name()), "{}", setting.name);
        }
    }
}
