//! The binary: parse the arguments, do what they ask, end with the status that says how it went.

use std::process::ExitCode;

use clap::Parser as _;
use redrive::cli::Cli;

fn main() -> ExitCode {
    // First of all, so that a second provider that slips in among the dependencies is no panic at the first handshake.
    rustls::crypto::ring::default_provider().install_default().expect("nothing has installed a provider before");
    let result = Cli::parse().run();
    ExitCode::from(Cli::exit_status(result))
}
