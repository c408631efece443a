//! The processes of the demonstration: a real Redis and a real sidecar, on free ports, in one temporary directory.
//! They end with their handles.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(10);
/// Somewhat more than a sidecar gives itself.
const STOP_PATIENCE: Duration = Duration::from_secs(25);

/// A child that is killed when its handle goes.
pub struct Process(Option<Child>);

impl Process {
    pub fn none() -> Self {
        Self(None)
    }

    /// Starts a program, which writes into that log, and waits until it answers.
    pub fn start(
        command: &mut Command,
        log: &Path,
        patience: Duration,
        answers: impl Fn() -> bool,
    ) -> anyhow::Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).spawn()?;
        let process = Self(Some(child));
        let begun = Instant::now();
        while !answers() {
            if begun.elapsed() > patience {
                bail!("it does not answer; its log is\n{}", tail(log));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(process)
    }

    pub fn kill9(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself: then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A Redis that syncs every write before it answers, so that what is shown is not luck.
pub struct Redis {
    process: Process,
    dir: PathBuf,
    pub port: u16,
}

impl Redis {
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join("redis");
        std::fs::create_dir(&dir)?;
        let mut redis = Self { process: Process::none(), dir, port: free_port()? };
        redis.restart()?;
        Ok(redis)
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new("redis-server");
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(&self.dir);
        let answers = || matches!(self.ask(&["PING"]), Ok(Reply::Text(pong)) if pong == "PONG");
        self.process = Process::start(&mut command, &self.dir.join("redis.log"), PATIENCE, answers)
            .context("redis-server (package redis-server, or redis) cannot be started")?;
        Ok(())
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// One question over a connection of its own.
    pub fn ask(&self, words: &[&str]) -> io::Result<Reply> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(request.as_bytes())?;
        read_reply(&mut BufReader::new(stream))
    }
}

/// What Redis answers, as far as it is asked here.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    List(Vec<String>),
    None,
}

fn read_reply(stream: &mut BufReader<TcpStream>) -> io::Result<Reply> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "not a reply of Redis");
    let (kind, rest) = line.trim_end().split_at_checked(1).ok_or_else(broken)?;
    match kind {
        "+" | ":" => Ok(Reply::Text(rest.to_owned())),
        "$" if rest == "-1" => Ok(Reply::None),
        "$" => {
            let len: usize = rest.parse().map_err(|_| broken())?;
            let mut bytes = vec![0; len + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(len);
            String::from_utf8(bytes).map(Reply::Text).map_err(|_| broken())
        }
        "*" => {
            let len: usize = rest.parse().map_err(|_| broken())?;
            let items = (0..len).map(|_| match read_reply(stream)? {
                Reply::Text(text) => Ok(text),
                Reply::List(_) | Reply::None => Err(broken()),
            });
            items.collect::<io::Result<_>>().map(Reply::List)
        }
        _ => Err(io::Error::other(rest.to_owned())),
    }
}

/// The sidecar: this program's own `serve`.
pub struct Sidecar {
    process: Process,
    dir: PathBuf,
    redis_url: String,
    /// Further ones of `serve`.
    flags: Vec<String>,
    pub port: u16,
    pub ops_port: u16,
}

impl Sidecar {
    pub fn start(dir: &Path, redis: &Redis, flags: Vec<String>) -> anyhow::Result<Self> {
        std::fs::create_dir(dir)?;
        let (port, ops_port) = (free_port()?, free_port()?);
        let (process, redis_url) = (Process::none(), redis.url());
        let mut sidecar = Self { process, dir: dir.to_owned(), redis_url, flags, port, ops_port };
        sidecar.restart()?;
        Ok(sidecar)
    }

    pub fn restart(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve");
        command.args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        command.args(["--ops-listen", &format!("127.0.0.1:{}", self.ops_port)]);
        command.args(["--redis-url", &self.redis_url]);
        // A temporary directory may be memory, which is enough for kill -9.
        command.args(["--journal-allow-volatile", "--journal-min-free-bytes", "0", "--data-dir"]);
        command.arg(self.dir.join("data")).args(&self.flags);
        self.process = Process::start(&mut command, &self.dir.join("redrive.log"), PATIENCE, || listens(self.port))
            .context("the sidecar cannot be started")?;
        Ok(())
    }

    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(child) = &mut self.process.0 else { return Ok(()) };
        kill_process(Pid::from_child(child), Signal::TERM)?;
        let begun = Instant::now();
        while child.try_wait()?.is_none() {
            if begun.elapsed() > STOP_PATIENCE {
                bail!("the sidecar does not stop; its log is\n{}", tail(&self.dir.join("redrive.log")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.process = Process::none();
        Ok(())
    }
}

pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(10).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
