//! Real Redis servers for tests.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a server may take to start or stop: only a broken machine takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A reply of a server, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

impl Reply {
    /// The entries of an array.
    pub(crate) fn items(&self) -> &[Reply] {
        match self {
            Self::Array(items) => items,
            other => panic!("not an array: {other:?}"),
        }
    }

    /// The text of a status, an error or a value.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Status(text) | Self::Error(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Bulk(Some(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Bulk(None) => String::new(),
            Self::Array(items) => items.iter().map(Self::text).collect::<Vec<_>>().join(" "),
        }
    }
}

/// A `redis-server` of its own on a free port of the loopback, with a directory of its own; ended when dropped.
pub(crate) struct RedisServer {
    child: Child,
    port: u16,
    dir: TempDir,
    extra_args: Vec<String>,
}

impl RedisServer {
    /// Starts a server and waits until it answers. Later arguments win over the ones given here.
    pub(crate) fn start(extra_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let extra_args: Vec<String> = extra_args.iter().map(|&arg| arg.to_owned()).collect();
        // Another process may take the port between asking for it and listening: then another one is tried.
        for _ in 0..20 {
            let port = free_port();
            let mut child = spawn(port, &dir, &extra_args);
            if answers(port, &mut child) {
                return Self { child, port, dir, extra_args };
            }
        }
        panic!("redis-server does not start; is it installed?");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Ends the server as a crash does.
    pub(crate) fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().expect("the child is ours to wait for");
    }

    /// Freezes the server: its sockets stay, and nothing answers.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
    }

    pub(crate) fn cont(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the server if it runs, and starts it again on the same port and directory.
    pub(crate) fn restart(&mut self) {
        self.restart_without_waiting(&[]);
        assert!(answers(self.port, &mut self.child), "redis-server does not start again");
    }

    /// As `restart`, with more arguments, and without waiting until it answers.
    pub(crate) fn restart_without_waiting(&mut self, more_args: &[&str]) {
        if self.child.try_wait().expect("the child is ours to wait for").is_none() {
            self.kill9();
        }
        let mut args = self.extra_args.clone();
        args.extend(more_args.iter().map(|&arg| arg.to_owned()));
        self.child = spawn(self.port, &self.dir, &args);
    }

    /// Sends one command over a connection of its own.
    pub(crate) fn cli(&self, args: &[&str]) -> Reply {
        let bytes: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        command(self.port, &bytes).expect("the server answers")
    }

    /// Sends one command and leaves its reply for whoever holds the stream.
    pub(crate) fn send(&self, args: &[&str]) -> TcpStream {
        let bytes: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
        send(self.port, &bytes).expect("the server takes commands")
    }

    /// Waits until the command's reply is as wanted.
    pub(crate) fn wait_until(&self, args: &[&str], wanted: impl Fn(&Reply) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let bytes: Vec<&[u8]> = args.iter().map(|arg| arg.as_bytes()).collect();
            let reply = command(self.port, &bytes);
            if reply.as_ref().is_ok_and(&wanted) {
                return;
            }
            assert!(Instant::now() < deadline, "{args:?} still answers {reply:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child is ours to signal");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // SIGKILL ends a frozen process too. It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nothing listens on at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

fn spawn(port: u16, dir: &TempDir, extra_args: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(["--enable-debug-command", "yes", "--dir"])
        .arg(dir.path())
        .args(extra_args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

/// Whether the child comes to answer on the port; false when it ended instead.
fn answers(port: u16, child: &mut Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if child.try_wait().expect("the child is ours to wait for").is_some() {
            return false;
        }
        if command(port, &[b"PING"]).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Whether the server on the port answers a `PING` in that time.
pub(crate) fn answers_within(port: u16, time: Duration) -> bool {
    let reply = send(port, &[b"PING"]).and_then(|stream| {
        stream.set_read_timeout(Some(time))?;
        read_reply(&mut BufReader::new(stream))
    });
    reply.is_ok()
}

/// Sends one command and reads its reply.
fn command(port: u16, args: &[&[u8]]) -> std::io::Result<Reply> {
    read_reply(&mut BufReader::new(send(port, args)?))
}

fn send(port: u16, args: &[&[u8]]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        request.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        request.extend_from_slice(arg);
        request.extend_from_slice(b"\r\n");
    }
    stream.write_all(&request)?;
    Ok(stream)
}

fn read_reply(stream: &mut impl BufRead) -> std::io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let malformed = || std::io::Error::other(format!("not a reply: {line:?}"));
    let (kind, rest) = line.split_at_checked(1).ok_or_else(malformed)?;
    let number = || rest.parse::<i64>().map_err(|_| malformed());
    match kind {
        "+" => Ok(Reply::Status(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => Ok(Reply::Integer(number()?)),
        "$" => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Reply::Bulk(None)) };
            let mut bytes = vec![0; length + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Ok(Reply::Bulk(Some(bytes)))
        }
        "*" => (0..number()?).map(|_| read_reply(stream)).collect::<std::io::Result<_>>().map(Reply::Array),
        _ => Err(malformed()),
    }
}
