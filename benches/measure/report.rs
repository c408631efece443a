//! What was measured, as a table.

use std::{collections::HashMap, fmt::Write as _, fs, process::Command};

/// Several measurements of the same thing.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub fn last(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The median with the spread, in so many decimals.
    pub fn show(&self, decimals: usize) -> String {
        let min = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let max = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{:.decimals$} ({min:.decimals$} to {max:.decimals$})", self.median())
    }
}

/// A line of the table.
struct Row {
    what: String,
    measured: String,
    goal: String,
    /// None: there is no goal.
    reached: Option<bool>,
}

#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    missed_gates: Vec<String>,
    /// What was measured before, by what it is.
    before: HashMap<String, String>,
}

impl Report {
    /// An empty one, which shows beside each number what stands in this document.
    pub fn beside(path: &str) -> Self {
        let document = fs::read_to_string(path).unwrap_or_default();
        let rows = document.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            Some((cells.next()?.to_owned(), cells.next()?.to_owned()))
        });
        Self { before: rows.collect(), ..Self::default() }
    }

    /// Something without a goal.
    pub fn note(&mut self, what: &str, measured: &str) {
        self.add(what, measured, "", None);
    }

    /// A goal that is reported only: noise alone may miss it.
    pub fn goal(&mut self, what: &str, measured: &str, goal: &str, reached: bool) {
        self.add(what, measured, goal, Some(reached));
    }

    /// A goal that must be reached.
    pub fn gate(&mut self, what: &str, measured: &str, goal: &str, reached: bool) {
        self.add(what, measured, goal, Some(reached));
        if !reached {
            self.missed_gates.push(format!("{what}: {measured}, goal {goal}"));
        }
    }

    fn add(&mut self, what: &str, measured: &str, goal: &str, reached: Option<bool>) {
        let row = Row { what: what.into(), measured: measured.into(), goal: goal.into(), reached };
        let before = self.before.get(what).map(|before| format!("before: {before}")).unwrap_or_default();
        let line = format!("{what:<52} {measured:<34} {goal:<16} {:<12} {before}", verdict(&row));
        println!("{}", line.trim_end());
        self.rows.push(row);
    }

    pub fn missed_gates(&self) -> &[String] {
        &self.missed_gates
    }

    /// Writes the table of that name, in place of the one that is there; what was written around it by hand stays.
    pub fn write(&self, path: &str, name: &str, circumstances: &str, column: &str) -> std::io::Result<()> {
        let begin = format!("<!-- {name}: written by make bench -->\n");
        let end = format!("<!-- end of {name} -->\n");
        let mut table = format!("{begin}\n{circumstances}\n\n| what | {column} | goal | |\n|---|---|---|---|\n");
        for row in &self.rows {
            let _ = writeln!(table, "| {} | {} | {} | {} |", row.what, row.measured, row.goal, verdict(row));
        }
        table.push('\n');
        table.push_str(&end);
        let old = fs::read_to_string(path)?;
        let around = old.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
        let (before, after) = around.unwrap_or((&old, ""));
        fs::write(path, format!("{before}{table}{after}"))
    }
}

fn verdict(row: &Row) -> &'static str {
    match row.reached {
        Some(true) => "reached",
        Some(false) => "**missed**",
        None => "",
    }
}

/// What times depend on.
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = said_by("uname", &["-r"]);
    let redis = said_by("redis-server", &["--version"]);
    let redis = redis.split_whitespace().nth(2).unwrap_or_default().replace("v=", "");
    let date = said_by("date", &["-u", "+%Y-%m-%d"]);
    format!(
        "Measured on {date}: {count} CPUs ({model}), Linux {kernel}, Redis {redis}; the load driver, the servers and Redis share them."
    )
}

/// What counts depend on.
pub fn tools() -> String {
    let date = said_by("date", &["-u", "+%Y-%m-%d"]);
    let rustc = said_by("rustc", &["--version"]);
    let libc = said_by("getconf", &["GNU_LIBC_VERSION"]);
    format!("Counted on {date} by {}: {rustc}, {libc}.", said_by("valgrind", &["--version"]))
}

fn said_by(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
