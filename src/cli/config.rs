//! `redrive config`.

use super::{
    output::{Table, print_json},
    settings::AllSettings,
};
use crate::config::Given;

/// Print the settings in effect and where each one comes from
///
/// Takes the same flags as `serve` and checks the same things, so that it is also a dry run of a configuration.
/// Passwords are not printed.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: AllSettings,
}

const EXAMPLES: &str = "\
Examples:
  redrive config
  redrive config --config redrive.toml
  redrive config --json | jq '.[] | select(.origin != \"built-in\")'

Exit status: 0 the configuration is right, 2 it is not; every problem is listed on standard error.";

pub fn run(args: Args) -> anyhow::Result<()> {
    let effective = args.settings.load()?.effective;
    if args.json {
        return print_json(&effective.iter().map(Row::from).collect::<Vec<_>>());
    }
    let mut table = Table::new(["SETTING", "VALUE", "ORIGIN"]);
    for given in &effective {
        table.row([&given.name, &given.shown(), &given.origin.to_string()]);
    }
    Ok(table.print()?)
}

#[derive(serde::Serialize)]
struct Row<'a> {
    setting: &'a str,
    /// As it would be written in the environment.
    value: String,
    origin: String,
}

impl<'a> From<&'a Given> for Row<'a> {
    fn from(given: &'a Given) -> Self {
        Self { setting: &given.name, value: given.shown(), origin: given.origin.to_string() }
    }
}
