//! What commands print. Data goes to standard output, everything else to standard error.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use crate::telemetry::Escaping;

/// Rows under a heading, in columns. Control characters are escaped: cells hold what services sent.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { rows: vec![heading.map(printable).into()] }
    }

    pub fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(printable).into());
    }

    pub fn print(&self) -> io::Result<()> {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = io::stdout().lock();
        for row in &self.rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        out.flush()
    }
}

/// Prints a text that ends in a line of its own.
pub fn print_text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints a value as indented JSON.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// Prints a line of data.
pub fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", printable(line))?;
    out.flush()
}

/// Tells the person something. Nothing to do where nobody listens.
pub fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", printable(line));
}

fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    write!(Escaping(&mut printable), "{text}").expect("a string takes everything");
    printable
}
