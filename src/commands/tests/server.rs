//! A server of the test's own, on a unix socket, and enough of its protocol.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const START: Duration = Duration::from_secs(20);
/// When it has to be fetched first.
const FETCH: Duration = Duration::from_secs(300);

pub(super) struct Server {
    child: Child,
    stream: BufReader<UnixStream>,
    is_newer: bool,
    _dir: tempfile::TempDir,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    Text(String),
    Error(String),
    Int(i64),
    Bulk(Vec<u8>),
    Nil,
    List(Vec<Reply>),
}

impl Reply {
    pub(super) fn list(&self) -> &[Reply] {
        let Self::List(items) = self else { panic!("not a list: {self:?}") };
        items
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Bulk(bytes) => bytes,
            other => panic!("no text: {other:?}"),
        }
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(self.bytes()).expect("a text")
    }

    pub(super) fn int(&self) -> i64 {
        let Self::Int(int) = self else { panic!("not an integer: {self:?}") };
        *int
    }

    pub(super) fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}

impl Server {
    /// The Redis that the table is made for.
    pub(super) fn start() -> Self {
        Self::start_program("redis-server", START, false)
    }

    /// One that knows the newer commands.
    pub(super) fn start_newer() -> Self {
        Self::start_program(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/valkey-server"), FETCH, true)
    }

    fn start_program(program: &str, patience: Duration, is_newer: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("redis.sock");
        let mut child = Command::new(program)
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--enable-debug-command", "yes"])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be run: {error}"));
        let started = Instant::now();
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            assert!(child.try_wait().expect("a child").is_none(), "{program} ended");
            assert!(started.elapsed() < patience, "{program} did not start");
            std::thread::sleep(Duration::from_millis(5));
        };
        Self { child, stream: BufReader::new(stream), is_newer, _dir: dir }
    }

    pub(super) fn is_newer(&self) -> bool {
        self.is_newer
    }

    pub(super) fn call<A: AsRef<[u8]>>(&mut self, command: &[A]) -> Reply {
        self.send([command]);
        self.receive()
    }

    /// A command of plain words.
    pub(super) fn say(&mut self, line: &str) -> Reply {
        self.call(&line.split(' ').collect::<Vec<_>>())
    }

    /// Sends all, then reads all replies.
    pub(super) fn say_all(&mut self, lines: &[&str]) -> Vec<Reply> {
        let commands: Vec<Vec<&str>> = lines.iter().map(|line| line.split(' ').collect()).collect();
        self.send(commands.iter().map(Vec::as_slice));
        lines.iter().map(|_| self.receive()).collect()
    }

    fn send<'c, A: AsRef<[u8]> + 'c>(&mut self, commands: impl IntoIterator<Item = &'c [A]>) {
        let mut bytes = Vec::new();
        for command in commands {
            bytes.extend(format!("*{}\r\n", command.len()).into_bytes());
            for arg in command {
                bytes.extend(format!("${}\r\n", arg.as_ref().len()).into_bytes());
                bytes.extend(arg.as_ref());
                bytes.extend(b"\r\n");
            }
        }
        self.stream.get_mut().write_all(&bytes).expect("the server reads");
    }

    fn receive(&mut self) -> Reply {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the server answers");
        let (kind, rest) = line.trim_end().split_at(1);
        let count = || rest.parse::<i64>().expect("a number");
        match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Int(count()),
            "$" => match usize::try_from(count()) {
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.stream.read_exact(&mut bytes).expect("the server answers");
                    bytes.truncate(len);
                    Reply::Bulk(bytes)
                }
                Err(_) => Reply::Nil,
            },
            "*" => match usize::try_from(count()) {
                Ok(len) => Reply::List((0..len).map(|_| self.receive()).collect()),
                Err(_) => Reply::Nil,
            },
            other => panic!("not RESP2: {other:?}"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The test is over; what cannot be killed has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
