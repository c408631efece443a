//! Real Redis servers for tests.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
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
    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Status(text) => format!("+{text}\r\n").into(),
            Self::Error(text) => format!("-{text}\r\n").into(),
            Self::Integer(number) => format!(":{number}\r\n").into(),
            Self::Bulk(None) => b"$-1\r\n".into(),
            Self::Bulk(Some(bytes)) => [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat(),
            Self::Array(items) => {
                let items: Vec<Vec<u8>> = items.iter().map(Self::to_bytes).collect();
                [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat()
            }
        }
    }

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

/// A network between a target and a server, which can lose its state: what is sent then is neither delivered nor
/// refused, and it arrives when the link is mended, whatever the sender has done meanwhile.
pub(crate) struct Link {
    port: u16,
    state: Arc<(Mutex<bool>, Condvar)>,
}

impl Link {
    pub(crate) fn to(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let link = Self { port, state: Arc::default() };
        let (state, server) = (link.state.clone(), server.port());
        std::thread::spawn(move || {
            // Until the process ends, as nothing else ends an `accept`.
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                carry(&client, &server, state.clone());
                carry(&server, &client, state.clone());
            }
        });
        link
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn cut(&self) {
        *self.state.0.lock().expect("nobody panics while holding it") = true;
    }

    pub(crate) fn mend(&self) {
        *self.state.0.lock().expect("nobody panics while holding it") = false;
        self.state.1.notify_all();
    }
}

/// Carries bytes one way, in a thread that ends with the connection.
fn carry(from: &TcpStream, to: &TcpStream, state: Arc<(Mutex<bool>, Condvar)>) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("there are descriptors left");
    let (mut from, mut to) = (clone(from), clone(to));
    std::thread::spawn(move || {
        let mut bytes = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let is_cut = state.0.lock().expect("nobody panics while holding it");
            drop(state.1.wait_while(is_cut, |is_cut| *is_cut).expect("nobody panics while holding it"));
            if to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        // The end of a connection is lost as well while the link is cut.
        let is_cut = state.0.lock().expect("nobody panics while holding it");
        drop(state.1.wait_while(is_cut, |is_cut| *is_cut).expect("nobody panics while holding it"));
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
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
            return !is_of_another(port, child);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Whether the port was taken by another test's server before the child could listen on it.
fn is_of_another(port: u16, child: &Child) -> bool {
    let own = format!("process_id:{}\r", child.id());
    let info = command(port, &[b"INFO", b"server"]);
    info.is_ok_and(|info| matches!(info, Reply::Bulk(Some(_))) && !info.text().contains(&own))
}

/// Whether the server on the port answers a `PING` in that time.
pub(crate) fn answers_within(port: u16, time: Duration) -> bool {
    let reply = send(port, &[b"PING"]).and_then(|stream| {
        stream.set_read_timeout(Some(time))?;
        read_reply(&mut BufReader::new(stream))
    });
    reply.is_ok()
}

/// Answers what a client asks over the stream, until it closes it.
pub(crate) fn serve(stream: TcpStream, answer: impl Fn(&[String]) -> Reply) {
    let mut asked = BufReader::new(stream.try_clone().expect("there are descriptors left"));
    let mut stream = stream;
    while let Ok(command) = read_reply(&mut asked) {
        let words: Vec<String> = command.items().iter().map(Reply::text).collect();
        if stream.write_all(&answer(&words).to_bytes()).is_err() {
            return;
        }
    }
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
