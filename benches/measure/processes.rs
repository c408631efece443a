//! The programs that are measured: started on free ports, looked at through `/proc`, killed when dropped.

use std::{
    ffi::OsStr,
    fs, io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::redis::Redis;

/// What a kernel tick of `/proc/PID/stat` is on every Linux that Rust supports.
const TICK: Duration = Duration::from_millis(10);

/// A program at work.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map(Self)
    }

    /// Processor time used so far, of user and kernel.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.0.id())
    }

    /// Kilobytes of a line of `/proc/PID/status`.
    pub fn kilobytes(&self, line: &str) -> u64 {
        let status = self.read("status");
        let found = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':'));
        found.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap_or_default()
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processor time that a process has used so far, of user and kernel.
pub fn cpu_of(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may have spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<u32>().ok()).unwrap_or(0);
    TICK * (ticks(11) + ticks(12))
}

/// An address where nobody listens.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// What a sidecar is started with that is as it is by default.
pub const LIMITED: [&str; 0] = [];

/// What lets a sidecar send as much as Redis takes.
pub const UNLIMITED: [&str; 2] = ["--redis-max-rate=0", "--redis-adaptive=false"];

/// A sidecar under test.
pub struct Sidecar {
    pub process: Process,
    pub address: SocketAddr,
}

impl Sidecar {
    /// Starts it; does not wait until it serves.
    pub fn start(data: &Path, redis: SocketAddr) -> io::Result<Self> {
        Self::start_by(&[], data, redis, &UNLIMITED)
    }

    /// The same with these flags, run by a program that comes before it on the command line; empty: by none.
    pub fn start_by(
        runner: &[String],
        data: &Path,
        redis: SocketAddr,
        flags: &[impl AsRef<OsStr>],
    ) -> io::Result<Self> {
        let address = free_address()?;
        let mut words = runner.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_redrive")]);
        let process = Process::start(
            Command::new(words.next().expect("the sidecar is one of them"))
                .args(words)
                .arg("serve")
                .args(["--listen", &address.to_string(), "--ops-listen", "127.0.0.1:0"])
                .args(["--redis-url", &format!("redis://{redis}/0")])
                .args(flags)
                .arg("--data-dir")
                .arg(data),
        )?;
        Ok(Self { process, address })
    }

    /// Starts it and waits until it listens.
    pub async fn serving(data: &Path, redis: SocketAddr) -> io::Result<Self> {
        Self::serving_with(&UNLIMITED, data, redis).await
    }

    /// The same with these flags.
    pub async fn serving_with(flags: &[impl AsRef<OsStr>], data: &Path, redis: SocketAddr) -> io::Result<Self> {
        Self::serving_by(&[], data, redis, flags).await
    }

    /// The same, run by a program as by [`Sidecar::start_by`].
    pub async fn serving_by(
        runner: &[String],
        data: &Path,
        redis: SocketAddr,
        flags: &[impl AsRef<OsStr>],
    ) -> io::Result<Self> {
        let sidecar = Self::start_by(runner, data, redis, flags)?;
        wait_for(sidecar.address).await?;
        Ok(sidecar)
    }
}

/// Puts the sidecar on a processor of its own and this program on the others, until it is dropped. Where there is only
/// one, nothing changes.
pub struct Apart(usize);

impl Apart {
    pub fn try_new() -> io::Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        if processors > 1 {
            put_on(&format!("1-{}", processors - 1))?;
        }
        Ok(Self(processors))
    }

    /// What comes before the sidecar on the command line.
    pub fn runner(&self) -> Vec<String> {
        if self.0 > 1 { ["taskset", "-c", "0"].map(str::to_owned).into() } else { Vec::new() }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if self.0 > 1 {
            let _ = put_on(&format!("0-{}", self.0 - 1));
        }
    }
}

fn put_on(processors: &str) -> io::Result<()> {
    let own = std::process::id().to_string();
    let status = Command::new("taskset").args(["-a", "-c", "-p", processors, &own]).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other("taskset has failed")) }
}

/// The bare server that the ratios compare with: this program, started again.
pub async fn echo() -> io::Result<Sidecar> {
    let address = free_address()?;
    let process = Process::start(Command::new(std::env::current_exe()?).args(["echo", &address.to_string()]))?;
    wait_for(address).await?;
    Ok(Sidecar { process, address })
}

/// A Redis without persistence, at this address.
pub async fn redis(address: SocketAddr, dir: &Path) -> io::Result<(Process, Redis)> {
    let process = Process::start(
        Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(dir),
    )?;
    wait_for(address).await?;
    Ok((process, Redis::connect(address).await?))
}

async fn wait_for(address: SocketAddr) -> io::Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing listens on {address}")))
}
