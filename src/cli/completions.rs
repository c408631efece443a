//! `redrive completions`.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;

/// Print a script that completes this command line in a shell
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  redrive completions bash > /etc/bash_completion.d/redrive
  redrive completions zsh > ~/.zfunc/_redrive
  redrive completions fish > ~/.config/fish/completions/redrive.fish";

pub fn run(args: &Args) -> anyhow::Result<()> {
    // Into memory first: the generator panics where its output is closed early.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "redrive", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}
