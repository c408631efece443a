//! Real Redis servers.

use std::{
    io::{self, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{
    PATIENCE, mortal,
    resp::{self, Reply},
    wait_until,
};

const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A `redis-server` on a port of its own; ended when dropped.
pub struct Redis {
    program: &'static str,
    child: Child,
    port: u16,
    dir: TempDir,
    args: Vec<String>,
}

impl Redis {
    /// Starts a server that keeps nothing on disk, and waits until it answers. Later arguments win over earlier ones.
    pub fn start(args: &[&str]) -> Self {
        Self::start_program("redis-server", args)
    }

    fn start_program(program: &'static str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        // Somebody else may take the port between asking for it and listening: then another one is tried.
        for _ in 0..20 {
            let port = free_port();
            let mut child = spawn(program, port, dir.path(), &args);
            if comes_up(port, &mut child) {
                return Self { program, child, port, dir, args };
            }
        }
        panic!("{program} does not start; is it installed?");
    }

    /// One that remembers every write that it answered, also over `kill9`.
    pub fn durable() -> Self {
        Self::start(&DURABLE)
    }

    /// The same of a server that knows the commands of after Redis 7.0.
    pub fn durable_and_newer() -> Self {
        Self::start_program(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/valkey-server"), &DURABLE)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Ends it as a crash does.
    pub fn kill9(&mut self) {
        self.child.kill().expect("the child is ours to kill");
        self.child.wait().expect("the child is ours to wait for");
    }

    /// Freezes it: its sockets stay, and nothing answers.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Starts it again on the same port and directory, after `kill9`.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
        assert!(comes_up(self.port, &mut self.child), "{} does not start again", self.program);
    }

    /// As `restart`, with more arguments, and without waiting until it answers.
    pub fn restart_with(&mut self, more: &[&str]) {
        let args: Vec<String> = self.args.iter().cloned().chain(more.iter().map(|&arg| arg.to_owned())).collect();
        self.child = spawn(self.program, self.port, self.dir.path(), &args);
    }

    /// A connection to ask many things over.
    pub fn client(&self) -> resp::Client {
        resp::Client::connect(self.port).expect("the server listens")
    }

    /// Sends one command over a connection of its own.
    pub fn cli(&self, args: &[&str]) -> Reply {
        self.try_cli(args).expect("the server answers")
    }

    pub fn try_cli(&self, args: &[&str]) -> io::Result<Reply> {
        command(self.port, args)
    }

    /// As `cli`, in the name of a user with a password.
    pub fn cli_as(&self, password: &str, args: &[&str]) -> Reply {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("the time is not zero");
        let bytes: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        resp::write_command(&mut stream, &[b"AUTH", password.as_bytes()]).expect("the server reads");
        resp::write_command(&mut stream, &bytes).expect("the server reads");
        let mut replies = BufReader::new(stream);
        resp::read_reply(&mut replies).expect("AUTH is answered");
        resp::read_reply(&mut replies).expect("the command is answered")
    }

    pub fn get(&self, key: &str) -> String {
        self.cli(&["GET", key]).text()
    }

    /// The elements of a list.
    pub fn list(&self, key: &str) -> Vec<String> {
        self.cli(&["LRANGE", key, "0", "-1"]).texts()
    }

    /// Waits until the value of a key is this one.
    pub fn wait_for_value(&self, key: &str, value: &str) {
        wait_until(&format!("{key} to be {value}"), || {
            self.try_cli(&["GET", key]).is_ok_and(|reply| reply.text() == value)
        });
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child is ours to signal");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // SIGKILL ends a frozen process too. It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nothing listens on at this moment, below those that the system gives to connections: nobody else gets it
/// while the server that had it is down.
fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| fastrand::u16(10_000..32_000)).find(is_free).expect("some port is free")
}

fn spawn(program: &str, port: u16, dir: &Path, args: &[String]) -> Child {
    mortal(program)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--enable-debug-command", "yes", "--dir"])
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("setpriv and the server are installed")
}

/// Whether the child comes to answer on the port; false when it ended instead.
fn comes_up(port: u16, child: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if child.try_wait().expect("the child is ours to wait for").is_some() {
            return false;
        }
        // One that asks for a password is up, and one that loads its data is not.
        if command(port, &["PING"]).is_ok_and(|reply| !reply.text().starts_with("LOADING")) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

fn command(port: u16, args: &[&str]) -> io::Result<Reply> {
    resp::Client::connect(port)?.ask(args)
}
