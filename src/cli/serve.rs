//! `redrive serve`.

use super::{UsageError, runtime, settings::AllSettings};
use crate::{app::App, faults, shutdown::Shutdown, telemetry};

/// Take tasks over HTTP and execute them on Redis
///
/// Listens on 127.0.0.1:7379 for tasks and on 127.0.0.1:7380 for probes, metrics and the admin API. Keeps accepted
/// tasks in `data_dir` until they are settled. Runs until SIGTERM or SIGINT; a second signal ends it at once, and no
/// accepted task is lost either way.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: AllSettings,
}

const EXAMPLES: &str = "\
Examples:
  redrive serve
  redrive serve --redis-url redis://redis:6379/0 --data-dir /var/lib/redrive
  redrive serve --listen unix:/run/redrive.sock --target sessions=redis://sessions:6379/0
  REDRIVE_REDIS_URL=redis://redis:6379 redrive serve --config redrive.toml

Exit status: 0 stopped cleanly, 2 wrong configuration or usage, 1 anything else.";

pub fn run(args: Args) -> anyhow::Result<()> {
    let config = args.settings.load()?.config;
    telemetry::init(&config.log.level, config.log.format)?;
    faults::arm().map_err(|fault| UsageError(fault.to_string()))?;
    runtime()?.block_on(async {
        let shutdown = Shutdown::on_signals()?;
        App::build(&config)?.run(shutdown).await?;
        Ok(())
    })
}
