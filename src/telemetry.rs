//! Logging: what is written, in which form, and what never is.
//!
//! Lines go to standard output, where container platforms expect the log of a service, as text on a terminal and as
//! JSON elsewhere. In text, control characters are escaped, so that what came from outside can neither forge a line
//! nor steer a terminal. A panic is logged by its place only: its message may hold what a task carried.

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
    panic::PanicHookInfo,
};

use tracing_subscriber::{
    field::MakeExt as _,
    filter::{ParseError, Targets},
    fmt::format,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub mod metrics;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
    /// Text on a terminal, JSON otherwise.
    Auto,
}

impl Format {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            "auto" => Some(Self::Auto),
            _ => None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{from} is not a log filter")]
    Filter {
        from: &'static str,
        #[source]
        source: ParseError,
    },
    #[error("logging has been set up before")]
    Twice,
}

/// Sets up logging for the whole process, once, and logs panics. `RUST_LOG` goes before `level` where it is set.
pub fn init(level: &str, format: Format) -> Result<(), InitError> {
    let from_env = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty());
    let (from, directives) = match &from_env {
        Some(directives) => ("RUST_LOG", directives.as_str()),
        None => ("log.level", level),
    };
    // It has lines for each request that fails; ours says once what is wrong. What is asked of it by name goes before.
    let directives = format!("rskafka=off,{directives}");
    let filter: Targets = directives.parse().map_err(|source| InitError::Filter { from, source })?;
    let terminal = std::io::stdout().is_terminal();
    let filtered = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stdout);
    let text = match format {
        Format::Text => true,
        Format::Json => false,
        Format::Auto => terminal,
    };
    if text {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let fields = format::debug_fn(write_field).delimited(" ");
        let lines = lines.with_ansi(colours).fmt_fields(fields);
        filtered.with(lines).try_init().map_err(|_| InitError::Twice)?;
    } else {
        let lines = lines.json().flatten_event(true).with_current_span(true).with_span_list(false);
        filtered.with(lines).try_init().map_err(|_| InitError::Twice)?;
    }
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn write_field(writer: &mut format::Writer<'_>, field: &tracing::field::Field, value: &dyn fmt::Debug) -> fmt::Result {
    let mut writer = Escaping(writer);
    match field.name() {
        "message" => write!(writer, "{value:?}"),
        name => write!(writer, "{name}={value:?}"),
    }
}

/// Writes control characters as escapes.
pub struct Escaping<W>(pub W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(char::is_control) {
            let (plain, from_control) = rest.split_at(at);
            let control = from_control.chars().next().expect("something was found here");
            self.0.write_str(plain)?;
            write!(self.0, "{}", control.escape_default())?;
            rest = &from_control[control.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(panic.thread = thread.name().unwrap_or("unnamed"), panic.place = place, "Panicked at {place}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_forge_a_line() {
        let mut written = String::new();
        write!(Escaping(&mut written), "a\nERROR b\u{1b}[2Jc\u{9b}ü").expect("a string takes everything");
        assert_eq!(written, "a\\nERROR b\\u{1b}[2Jc\\u{9b}ü");
    }
}
