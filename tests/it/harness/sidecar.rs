//! The real binary.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Answer, PATIENCE, http, redrive, wait_for, wait_until};

const DATA: &str = "data";

/// A sidecar with a data directory of its own; ended when dropped.
pub struct Sidecar {
    child: Child,
    /// Where its data directory is; it makes that one itself.
    dir: TempDir,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    /// What it has written so far, over all its lives.
    lines: Arc<Mutex<Vec<String>>>,
    port: u16,
    ops_port: u16,
}

/// Where a sidecar is asked; may go to other threads while the sidecar itself is killed and started again.
#[derive(Clone, Copy)]
pub struct Address(u16);

impl Address {
    /// An error: no answer, so the task is stored or not.
    pub fn post(self, task: &Value) -> io::Result<Answer> {
        http::ask(self.0, "POST", "/tasks", &[], &task.to_string())
    }

    pub fn batch(self, tasks: &[Value]) -> io::Result<Answer> {
        http::ask(self.0, "POST", "/tasks/batch", &[], &json!({"tasks": tasks}).to_string())
    }
}

/// As [`Address`], and the same through all lives of the sidecar: nobody else comes to listen there meanwhile.
#[derive(Clone)]
pub struct Socket(PathBuf);

impl Socket {
    pub fn post(&self, task: &Value) -> io::Result<Answer> {
        http::ask_socket(&self.0, "POST", "/tasks", &task.to_string())
    }

    pub fn batch(&self, tasks: &[Value]) -> io::Result<Answer> {
        http::ask_socket(&self.0, "POST", "/tasks/batch", &json!({"tasks": tasks}).to_string())
    }
}

impl Sidecar {
    /// Starts one for the Redis at `url`, and waits until it takes tasks. `args` are further flags of `serve`.
    pub fn start(url: &str, args: &[&str]) -> Self {
        Self::start_in(Vec::new(), url, args)
    }

    /// As `start`, with more in its environment, in all its lives.
    pub fn start_in(environment: Vec<(String, String)>, url: &str, args: &[&str]) -> Self {
        Self::launch(temporary(), "127.0.0.1:0", environment, url, args)
    }

    /// As `start`, with faults on purpose: what `REDRIVE_FAULTS` takes.
    pub fn start_with(faults: &str, url: &str, args: &[&str]) -> Self {
        Self::start_in(on_purpose(faults), url, args)
    }

    /// As `start_with`, but it takes tasks on a unix socket, and only there.
    pub fn start_on_socket(faults: &str, url: &str, args: &[&str]) -> (Self, Socket) {
        let dir = temporary();
        let socket = dir.path().join("tasks.sock");
        let sidecar = Self::launch(dir, &format!("unix:{}", socket.display()), on_purpose(faults), url, args);
        (sidecar, Socket(socket))
    }

    fn launch(dir: TempDir, listen: &str, environment: Vec<(String, String)>, url: &str, args: &[&str]) -> Self {
        let args = [&["--redis-url", url, "--listen", listen], args].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let lines = Arc::default();
        let child = spawn(&dir.path().join(DATA), &args, &environment, &lines);
        let mut sidecar = Self { child, dir, args, environment, lines, port: 0, ops_port: 0 };
        assert!(sidecar.comes_up(0), "the sidecar ended: {:?}", sidecar.logs().last());
        sidecar
    }

    pub fn kill9(&mut self) {
        self.child.kill().expect("the child is ours to kill");
        self.child.wait().expect("the child is ours to wait for");
    }

    /// Freezes it: its sockets stay, and nothing answers.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        self.wait_until_stopped();
    }

    /// Waits until it is frozen: by `stop`, or by a fault.
    pub fn wait_until_stopped(&self) {
        let status = PathBuf::from(format!("/proc/{}/stat", self.child.id()));
        let is_stopped = || {
            let stat = fs::read_to_string(&status).expect("a process that has not ended has a status");
            // `pid (name) state …`
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        wait_until("the sidecar to be frozen", is_stopped);
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child is ours to signal");
    }

    /// Starts it again on the same data directory, after it has ended.
    pub fn restart(&mut self) {
        assert!(self.try_restart(), "the sidecar ended: {:?}", self.logs().last());
    }

    /// As `restart`; false where it ended again before it was up, as one with faults may.
    pub fn try_restart(&mut self) -> bool {
        let before = self.logs().len();
        self.spawn_again();
        self.comes_up(before)
    }

    /// What `REDRIVE_FAULTS` has in its next lives.
    pub fn set_faults(&mut self, faults: &str) {
        self.environment = on_purpose(faults);
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child is ours to wait for").is_some()
    }

    /// Starts it again, which must fail; answers the status and the line that says why.
    pub fn fail_to_restart(&mut self) -> (Option<i32>, String) {
        let before = self.logs().len();
        self.spawn_again();
        let status = self.wait();
        let line = wait_for("the line that says why", || {
            self.logs()[before..].iter().find(|line| !line.starts_with('{')).cloned()
        });
        (status.code(), line)
    }

    fn spawn_again(&mut self) {
        self.child = spawn(&self.data_dir(), &self.args, &self.environment, &self.lines);
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join(DATA)
    }

    /// As `restart`, with more flags of `serve` from now on.
    pub fn restart_with(&mut self, more: &[&str]) {
        self.args.extend(more.iter().map(|&arg| arg.to_owned()));
        self.restart();
    }

    /// Sends SIGTERM and waits for the end.
    pub fn term(&mut self) -> ExitStatus {
        self.signal_term();
        self.wait()
    }

    pub fn signal_term(&self) {
        self.signal(Signal::TERM);
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the sidecar to end", || self.child.try_wait().expect("the child is ours to wait for"))
    }

    pub fn address(&self) -> Address {
        Address(self.port)
    }

    /// Of the data plane and of the ops plane.
    pub fn ports(&self) -> [u16; 2] {
        [self.port, self.ops_port]
    }

    /// How many files and connections the process has open.
    pub fn open_files(&self) -> usize {
        self.descriptors().count()
    }

    fn descriptors(&self) -> impl Iterator<Item = PathBuf> {
        let files = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a running process has open files");
        files.map(|file| file.expect("it can be listed").path())
    }

    /// The addresses on which the process takes TCP connections, as the kernel says.
    pub fn listening(&self) -> Vec<SocketAddr> {
        const LISTEN: &str = "0A";
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let open: Vec<PathBuf> = self.descriptors().filter_map(|file| fs::read_link(file).ok()).collect();
        let mut listening = Vec::new();
        for table in ["tcp", "tcp6"] {
            // Without IPv6 the second is not there.
            let table = fs::read_to_string(proc.join("net").join(table)).unwrap_or_default();
            for row in table.lines().skip(1) {
                let fields: Vec<&str> = row.split_whitespace().collect();
                let is_own = || open.contains(&PathBuf::from(format!("socket:[{}]", fields[9])));
                if fields[3] == LISTEN && is_own() {
                    listening.push(socket_address(fields[1]));
                }
            }
        }
        listening
    }

    /// Sends a task, which must be accepted.
    pub fn post(&self, task: &Value) -> Answer {
        let answer = self.try_post(task).expect("the sidecar answers");
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer
    }

    pub fn try_post(&self, task: &Value) -> io::Result<Answer> {
        self.address().post(task)
    }

    /// Sends tasks, all of which must be accepted.
    pub fn batch(&self, tasks: &[Value]) {
        let answer = self.address().batch(tasks).expect("the sidecar answers");
        assert_eq!(answer.status, 202, "{}", answer.body);
    }

    pub fn get(&self, id: &str) -> Answer {
        http::ask(self.port, "GET", &format!("/tasks/{id}"), &[], "").expect("the sidecar answers")
    }

    /// Asks the ops plane.
    pub fn ops(&self, path: &str) -> Answer {
        self.try_ops(path).expect("the sidecar answers")
    }

    pub fn try_ops(&self, path: &str) -> io::Result<Answer> {
        http::ask(self.ops_port, "GET", path, &[], "")
    }

    /// Asks the ops plane with the token that it wants.
    pub fn ops_with(&self, token: &str, path: &str) -> Answer {
        let authorization = format!("authorization: Bearer {token}");
        http::ask(self.ops_port, "GET", path, &[&authorization], "").expect("the sidecar answers")
    }

    pub fn is_ready(&self) -> bool {
        self.ops("/readyz").status == 200
    }

    /// The value of a series as it is written in the exposition, labels included.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.ops("/metrics").body;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().expect("values are numbers")
    }

    pub fn settled(&self, outcome: &str) -> u64 {
        self.metric(&format!(r#"redrive_tasks_settled_total{{outcome="{outcome}",target="default"}}"#)) as u64
    }

    /// Executions on Redis that ended like that.
    pub fn attempts(&self, class: &str) -> u64 {
        self.metric(&format!(r#"redrive_attempts_total{{class="{class}",target="default"}}"#)) as u64
    }

    /// Executions on Redis, however they ended.
    pub fn executions(&self) -> u64 {
        let text = self.ops("/metrics").body;
        let series = text.lines().filter(|line| line.starts_with("redrive_attempts_total{"));
        let values = series.map(|line| line.rsplit_once(' ').expect("a series has a value").1);
        values.map(|value| value.parse::<u64>().expect("it is a count")).sum()
    }

    /// What is kept of a dead task; none while it is not dead.
    pub fn dead_letter(&self, id: &str) -> Option<Value> {
        let answer = self.ops(&format!("/admin/v1/dead-letters/{id}"));
        assert!(matches!(answer.status, 200 | 404), "{}: {}", answer.status, answer.body);
        (answer.status == 200).then(|| answer.json())
    }

    /// Waits until everything that was accepted is settled.
    pub fn wait_until_done(&self) {
        wait_until("everything to be settled", || self.metric("kafka_consumer_lag") == 0.0);
    }

    pub fn logs(&self) -> Vec<String> {
        self.lines.lock().expect("nothing panics while it holds this").clone()
    }

    /// The log lines whose message contains the text.
    pub fn logged(&self, text: &str) -> Vec<Value> {
        let message = |line: &Value| line["message"].as_str().is_some_and(|message| message.contains(text));
        self.logs().iter().filter_map(|line| serde_json::from_str(line).ok()).filter(message).collect()
    }

    pub fn wait_for_log(&self, text: &str) -> Value {
        wait_for(&format!("a log line with: {text}"), || self.logged(text).pop())
    }

    /// The memory that the process takes now.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("a running process has a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the status says VmRSS");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is a number of kB");
        kib * 1024
    }

    /// Both listeners say where they are; the ops plane is the last to do so. False when the process ended instead.
    fn comes_up(&mut self, before: usize) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let lines = self.logs();
            let find = |start: &str| lines[before..].iter().find_map(|line| port_after(line, start));
            if let Some(ops_port) = find("admin API are on ") {
                // None on a unix socket.
                (self.port, self.ops_port) = (find("Taking tasks on ").unwrap_or(0), ops_port);
                return true;
            }
            if self.has_ended() {
                return false;
            }
            assert!(Instant::now() < deadline, "the sidecar does not start");
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // Shown by the test harness beside the failure.
            let lines = self.logs();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// Reads `0100007F:1CD3`: the address in words of 32 bits, each as it lies in memory, and the port.
fn socket_address(text: &str) -> SocketAddr {
    let hexadecimal = |digits: &str| u32::from_str_radix(digits, 16).expect("it is hexadecimal");
    let (address, port) = text.split_once(':').expect("an address has a port");
    let octets: Vec<u8> =
        (0..address.len()).step_by(8).flat_map(|at| hexadecimal(&address[at..at + 8]).to_ne_bytes()).collect();
    let ip = match <[u8; 4]>::try_from(&octets[..]) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(octets).expect("an address has 4 or 16 octets")),
    };
    SocketAddr::new(ip, hexadecimal(port) as u16)
}

fn port_after(line: &str, start: &str) -> Option<u16> {
    let (_, rest) = line.split_once(&format!("{start}http://127.0.0.1:"))?;
    let digits = rest.find(|found: char| !found.is_ascii_digit())?;
    rest[..digits].parse().ok()
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// The environment that has these faults; an empty one for none.
fn on_purpose(faults: &str) -> Vec<(String, String)> {
    [("REDRIVE_FAULTS", faults)]
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn spawn(data_dir: &Path, args: &[String], environment: &[(String, String)], lines: &Arc<Mutex<Vec<String>>>) -> Child {
    let mut child = redrive()
        .args(["serve", "--ops-listen", "127.0.0.1:0", "--journal-allow-volatile"])
        .arg("--data-dir")
        .arg(data_dir)
        .args(args)
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setpriv is installed, and the binary is built");
    collect(child.stdout.take().expect("it is piped"), lines.clone());
    collect(child.stderr.take().expect("it is piped"), lines.clone());
    child
}

/// Keeps what a child writes, in a thread that ends with the child.
fn collect(from: impl io::Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            lines.lock().expect("nothing panics while it holds this").push(line);
        }
    });
}
