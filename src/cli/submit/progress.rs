//! How far a file has been handed in: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{super::output::tell, task::Refused};

/// How often a line is written where there is no bar.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts, and shows the count on standard error.
pub struct Progress {
    accepted: usize,
    refused: usize,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines { next: Instant },
}

impl Progress {
    /// `bytes` is the size of the input, if it is known.
    pub fn new(bytes: Option<u64>) -> Self {
        let shown = if io::stderr().is_terminal() {
            Shown::Bar(bar(bytes))
        } else {
            Shown::Lines { next: Instant::now() + LINE_INTERVAL }
        };
        Self { accepted: 0, refused: 0, shown }
    }

    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// A batch is done, for which `bytes` of the input were read.
    pub fn advance<'a>(&mut self, bytes: u64, accepted: usize, refused: impl Iterator<Item = &'a Refused>) {
        self.accepted += accepted;
        for Refused { line, reason } in refused {
            self.refused += 1;
            self.say(&format!("line {line}: refused: {reason}"));
        }
        let counts = format!("{} accepted, {} refused", self.accepted, self.refused);
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_message(counts);
                bar.inc(bytes);
            }
            Shown::Lines { next } if *next <= Instant::now() => {
                *next = Instant::now() + LINE_INTERVAL;
                tell(&format!("{counts} so far"));
            }
            Shown::Lines { .. } => {}
        }
    }

    /// Removes the bar. Accepted and refused, in this order.
    pub fn finish(self) -> (usize, usize) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
        (self.accepted, self.refused)
    }

    fn say(&self, line: &str) {
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| tell(line)),
            Shown::Lines { .. } => tell(line),
        }
    }
}

fn bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {percent}% {msg} (about {eta} left)"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} ({elapsed})"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is a constant that parses"))
}
