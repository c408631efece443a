//! How far something long has come: one line on standard error, written over on a terminal, and again now and then
//! elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use super::output::tell;

/// How often the line of a terminal changes.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Back to the begin of the line, and away with what stands there.
const CLEAR_LINE: &str = "\r\x1b[2K";

/// Something that is under way. What it says last stays only where there is no terminal.
pub struct Progress {
    is_terminal: bool,
    begun: Instant,
    next: Instant,
    interval: Duration,
}

impl Progress {
    /// Where there is no terminal it says something every `interval`, and nothing before.
    pub fn new(interval: Duration) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let interval = if is_terminal { REDRAW_INTERVAL } else { interval };
        let begun = Instant::now();
        Self { is_terminal, begun, next: begun + interval, interval }
    }

    /// Shows a line, if it is time for one.
    pub fn show(&mut self, line: impl FnOnce(Pace) -> String) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + self.interval;
        let line = line(Pace(now - self.begun));
        if self.is_terminal {
            self.write(&line);
        } else {
            tell(&line);
        }
    }

    /// Tells something that stays.
    pub fn tell(&self, line: &str) {
        self.clear();
        tell(line);
    }

    fn clear(&self) {
        if self.is_terminal {
            self.write("");
        }
    }

    fn write(&self, line: &str) {
        // Nothing to do where nobody looks.
        let _ = write!(io::stderr().lock(), "{CLEAR_LINE}{line}");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// How long it has taken so far.
pub struct Pace(Duration);

impl Pace {
    /// How many of them there were per second.
    pub fn rate(&self, done: u64) -> f64 {
        done as f64 / self.0.as_secs_f64()
    }

    /// When all will be done, if it goes on so.
    pub fn left(&self, done: u64, total: u64) -> String {
        match done {
            0 => "waiting".to_owned(),
            _ => format!("{:.0} s left", total.saturating_sub(done) as f64 / self.rate(done)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_so_far_says_how_long_it_will_take() {
        let pace = Pace(Duration::from_secs(2));
        assert_eq!(pace.left(50, 200), "6 s left");
        assert_eq!(pace.left(0, 200), "waiting");
        assert_eq!(pace.left(201, 200), "0 s left");
    }
}
