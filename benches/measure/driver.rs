//! Sends tasks over HTTP/1.1 and notes which were answered 202. Raw sockets on one thread, so that the driver takes as
//! little as possible of the machine that it measures.
//!
//! Closed loop: each connection sends the next request when it has the last one's answer; for capacity. Open loop:
//! requests have times at which they are due, and latency counts from those; for latency, because a closed loop waits
//! with a server that stalls and does not see it.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

/// Where a task's number stands in a template.
const PLACE: &str = "#########";

/// The key that the task of this number writes: of the same form as redis-benchmark's.
pub fn key(number: u32) -> String {
    format!("key:{number:012}")
}

/// What a task does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// SET of 100 bytes.
    Set,
    /// The same with a time to live.
    SetEx,
    /// INCR, which is made once.
    Incr,
    /// HSET of so many fields of 1 KiB.
    Fields(u16),
}

impl Work {
    fn command(self) -> &'static str {
        match self {
            Self::Set | Self::SetEx => "SET",
            Self::Incr => "INCR",
            Self::Fields(_) => "HSET",
        }
    }

    /// What follows the key among the arguments.
    fn rest(self) -> String {
        let value = "v".repeat(100);
        match self {
            Self::Set => format!(r#","{value}""#),
            Self::SetEx => format!(r#","{value}","EX","86400""#),
            Self::Incr => String::new(),
            Self::Fields(kib) => (0..kib).map(|field| format!(r#","{field}","{}""#, "v".repeat(1024))).collect(),
        }
    }
}

/// What is sent: single tasks, or batches of so many.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    Single(Work),
    Batch(Work, u32),
}

impl Shape {
    fn tasks(self) -> u32 {
        match self {
            Self::Single(_) => 1,
            Self::Batch(_, tasks) => tasks,
        }
    }
}

/// A body as services send it, with an id and context: about 300 bytes for a SET.
fn task_template(work: Work) -> String {
    let (command, rest) = (work.command(), work.rest());
    format!(
        r#"{{"type":"simple","id":"bench-{PLACE}","command":"{command}","args":["key:000{PLACE}"{rest}],"source":"checkout","user_uuid":"7f9c24e8-3b12-4fef-91e0-57cb9c7b1e55","error":"dial tcp 10.0.0.7:6379: i/o timeout"}}"#
    )
}

/// A single task's body, as [`Shape::Single`] sends it.
pub fn body(work: Work, number: u32) -> String {
    task_template(work).replace(PLACE, &format!("{number:09}"))
}

/// A request with places for numbers.
struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    fn new(address: SocketAddr, shape: Shape) -> Self {
        let (path, body) = match shape {
            Shape::Single(work) => ("/tasks", task_template(work)),
            Shape::Batch(work, tasks) => {
                let tasks = vec![task_template(work); tasks as usize].join(",");
                ("/tasks/batch", format!(r#"{{"tasks":[{tasks}]}}"#))
            }
        };
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let places = request.match_indices(PLACE).map(|(at, _)| at).collect();
        Self { bytes: request.into_bytes(), places }
    }

    /// Writes the numbers from `first` on into the request; each task has two places.
    fn fill(&mut self, first: u32) {
        for (index, place) in self.places.iter().enumerate() {
            let mut rest = first + index as u32 / 2;
            for at in (*place..place + PLACE.len()).rev() {
                self.bytes[at] = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
    }
}

struct Client {
    address: SocketAddr,
    /// None: the next request opens one.
    stream: Option<TcpStream>,
    template: Template,
    received: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr, shape: Shape) -> io::Result<Self> {
        Ok(Self { stream: Some(open(address).await?), ..Self::apart(address, shape) })
    }

    /// Not connected yet: a server does not wait for a first request for long.
    fn apart(address: SocketAddr, shape: Shape) -> Self {
        Self { address, stream: None, template: Template::new(address, shape), received: Vec::with_capacity(4 * 1024) }
    }

    /// Sends the tasks from `first` on, and answers the status.
    async fn send(&mut self, first: u32) -> io::Result<u16> {
        // Put back where the connection can be used again.
        let mut stream = match self.stream.take() {
            Some(stream) if !has_ended(&stream) => stream,
            _ => open(self.address).await?,
        };
        self.template.fill(first);
        stream.write_all(&self.template.bytes).await?;
        self.received.clear();
        loop {
            if stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some((status, length)) = head_of(&self.received)
                && self.received.len() >= length
            {
                if !self.received.windows(CLOSE.len()).any(|found| found == CLOSE) {
                    self.stream = Some(stream);
                }
                return Ok(status);
            }
        }
    }
}

const CLOSE: &[u8] = b"connection: close";

/// Whether the server has closed it.
fn has_ended(stream: &TcpStream) -> bool {
    !matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The status, and how long the whole response is, once its head is there.
fn head_of(received: &[u8]) -> Option<(u16, usize)> {
    let end = received.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&received[..end]).ok()?;
    let status = head.get(9..12)?.parse().ok()?;
    let length: usize = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    Some((status, end + 4 + length))
}

/// What a run brought.
pub struct Ran {
    /// The numbers of the tasks that were answered 202.
    pub accepted: Vec<u32>,
    /// Requests with another answer or none.
    pub failed: u64,
    /// Of these, requests that were answered 503: microseconds from being sent.
    pub refused: Histogram<u64>,
    /// Of those that were answered 202, the same.
    pub waited: Histogram<u64>,
    /// Of all, microseconds from when they were due.
    pub latency: Histogram<u64>,
    pub elapsed: Duration,
}

impl Ran {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid");
        let (refused, waited) = (latency.clone(), latency.clone());
        Self { accepted: Vec::new(), failed: 0, refused, waited, latency, elapsed: Duration::ZERO }
    }

    fn note(&mut self, first: u32, shape: Shape, status: io::Result<u16>, latency: Duration, waited: Duration) {
        self.latency.saturating_record(latency.as_micros() as u64);
        match status {
            Ok(202) => {
                self.accepted.extend(first..first + shape.tasks());
                self.waited.saturating_record(waited.as_micros() as u64);
            }
            Ok(503) => {
                self.failed += 1;
                self.refused.saturating_record(waited.as_micros() as u64);
            }
            _ => self.failed += 1,
        }
    }

    fn merge(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.failed += other.failed;
        self.latency.add(&other.latency).expect("both have the same bounds");
        self.refused.add(&other.refused).expect("both have the same bounds");
        self.waited.add(&other.waited).expect("both have the same bounds");
    }

    /// Accepted tasks per second.
    pub fn rate(&self) -> f64 {
        self.accepted.len() as f64 / self.elapsed.as_secs_f64()
    }

    pub fn millis_at(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// When a closed loop ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Elapsed(Duration),
    /// So many tasks were sent.
    Sent(u32),
}

/// Sends as fast as the answers come. Numbers begin at `first`.
pub async fn closed_loop(
    address: SocketAddr,
    connections: usize,
    shape: Shape,
    first: u32,
    until: Until,
) -> io::Result<Ran> {
    let next = Arc::new(AtomicU32::new(first));
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(Client::connect(address, shape).await?);
    }
    let start = Instant::now();
    let mut running = JoinSet::new();
    for mut client in clients {
        let next = next.clone();
        running.spawn(async move {
            let mut ran = Ran::new();
            loop {
                let sent = Instant::now();
                let number = next.fetch_add(shape.tasks(), Ordering::Relaxed);
                let over = match until {
                    Until::Elapsed(time) => sent - start >= time,
                    Until::Sent(tasks) => number - first >= tasks,
                };
                if over {
                    return ran;
                }
                let status = client.send(number).await;
                let lost = status.is_err();
                let took = sent.elapsed();
                ran.note(number, shape, status, took, took);
                if lost {
                    return ran;
                }
            }
        });
    }
    let mut all = Ran::new();
    while let Some(ran) = running.join_next().await {
        all.merge(ran.expect("no client panics"));
    }
    all.elapsed = start.elapsed();
    Ok(all)
}

/// Sends single tasks at a fixed rate, over as many of `connections` as it takes. A thread of its own keeps the time:
/// the runtime's timer has steps of a millisecond. Where all connections are taken a task waits here, as in the pool of
/// a service; `waited` is from when it was sent.
pub async fn open_loop(
    address: SocketAddr,
    connections: usize,
    work: Work,
    per_second: u32,
    first: u32,
    time: Duration,
) -> io::Result<Ran> {
    let clients: Vec<_> = (0..connections).map(|_| Client::apart(address, Shape::Single(work))).collect();
    let pool = Arc::new((Semaphore::new(connections), Mutex::new(clients)));
    let (due, mut dues) = mpsc::unbounded_channel();
    let start = Instant::now() + Duration::from_millis(10);
    let count = (time.as_secs_f64() * f64::from(per_second)) as u32;
    let clock = std::thread::spawn(move || {
        for number in 0..count {
            let at = start + Duration::from_secs(1) * number / per_second;
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.send((first + number, at)).is_err() {
                return;
            }
        }
    });
    let mut running = JoinSet::new();
    while let Some((number, at)) = dues.recv().await {
        let pool = pool.clone();
        running.spawn(async move {
            let _one = pool.0.acquire().await.expect("the semaphore is never closed");
            let mut client = pool.1.lock().expect("nobody panics with it").pop().expect("there is one for each permit");
            let sent = Instant::now();
            let status = client.send(number).await;
            let (latency, waited) = (at.elapsed(), sent.elapsed());
            pool.1.lock().expect("nobody panics with it").push(client);
            (number, status, latency, waited)
        });
    }
    let mut all = Ran::new();
    while let Some(ended) = running.join_next().await {
        let (number, status, latency, waited) = ended.expect("no request panics");
        all.note(number, Shape::Single(work), status, latency, waited);
    }
    clock.join().expect("the clock does not panic");
    all.elapsed = start.elapsed();
    Ok(all)
}

/// Sends batches of tasks that are given as they are, one after the other; all must be accepted.
pub async fn hand_in(address: SocketAddr, batches: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let mut client = Client::connect(address, Shape::Single(Work::Set)).await?;
    for body in batches {
        let head = format!(
            "POST /tasks/batch HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.template = Template { bytes: [head.into_bytes(), body.into_bytes()].concat(), places: Vec::new() };
        let status = client.send(0).await?;
        anyhow::ensure!(status == 202, "a batch was answered {status}");
    }
    Ok(())
}

/// Asks until a single task is answered 202; for how long a start takes.
pub async fn first_accepted(address: SocketAddr, number: u32, patience: Duration) -> io::Result<()> {
    let start = Instant::now();
    while start.elapsed() < patience {
        if let Ok(mut client) = Client::connect(address, Shape::Single(Work::Set)).await
            && matches!(client.send(number).await, Ok(202))
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Hands in tasks until Kafka has one: before, they go to the sidecar's disk. Answers their numbers, which are high.
pub async fn until_in_kafka(address: SocketAddr, patience: Duration) -> io::Result<Vec<u32>> {
    let start = Instant::now();
    let first = fastrand::u32(900_000_000..999_000_000);
    for number in first.. {
        let mut client = Client::connect(address, Shape::Single(Work::Set)).await?;
        let status = client.send(number).await?;
        if status == 202 && String::from_utf8_lossy(&client.received).contains(r#""durability":"kafka""#) {
            return Ok((first..=number).collect());
        }
        if start.elapsed() > patience {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(io::ErrorKind::TimedOut.into())
}
