//! As much of a Redis client as it takes to look at what became of the tasks.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
};

use super::driver::{self, Work};

pub struct Redis(BufStream<TcpStream>);

impl Redis {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufStream::with_capacity(64 * 1024, 64 * 1024, stream)))
    }

    /// Removes all keys, and what was counted.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.0.write_all(b"FLUSHALL SYNC\r\nCONFIG RESETSTAT\r\n").await?;
        self.0.flush().await?;
        self.reply().await?;
        self.reply().await.map(drop)
    }

    /// How many keys there are.
    pub async fn size(&mut self) -> io::Result<u64> {
        self.0.write_all(b"DBSIZE\r\n").await?;
        self.0.flush().await?;
        self.number().await
    }

    /// How many times a command was executed, also by scripts, since the last flush.
    pub async fn calls(&mut self, command: &str) -> io::Result<u64> {
        let info = self.info("commandstats").await?;
        let of_it =
            info.lines().find_map(|line| line.strip_prefix("cmdstat_")?.strip_prefix(command)?.strip_prefix(':'));
        Ok(of_it.and_then(|stats| stats.strip_prefix("calls=")?.split(',').next()?.parse().ok()).unwrap_or(0))
    }

    /// Bytes of all that Redis holds.
    pub async fn memory(&mut self) -> io::Result<u64> {
        let info = self.info("memory").await?;
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
        used.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, info))
    }

    /// Gives each of these tasks' keys the value 0.
    pub async fn fill(&mut self, tasks: std::ops::Range<u32>) -> io::Result<()> {
        for number in tasks.clone() {
            self.0.write_all(format!("SET {} 0\r\n", driver::key(number)).as_bytes()).await?;
            if number % 500 == 499 || number + 1 == tasks.end {
                self.0.flush().await?;
                for _ in 0..=number % 500 {
                    self.reply().await?;
                }
            }
        }
        Ok(())
    }

    /// How many of these keys do not have this value.
    pub async fn differing(&mut self, wanted: &[(String, String)]) -> io::Result<usize> {
        let mut differing = 0;
        for some in wanted.chunks(500) {
            for (key, _) in some {
                self.0.write_all(format!("GET {key}\r\n").as_bytes()).await?;
            }
            self.0.flush().await?;
            for (_, value) in some {
                differing += usize::from(self.reply().await? != *value);
            }
        }
        Ok(differing)
    }

    /// How many of these tasks' keys do not hold what each task makes of a key that was not there.
    pub async fn wrong(&mut self, work: Work, tasks: &[u32]) -> io::Result<usize> {
        let question = match work {
            Work::Set => "STRLEN",
            Work::SetEx => "TTL",
            Work::Incr => "GET",
            Work::Fields(_) => "HLEN",
        };
        let mut wrong = 0;
        for some in tasks.chunks(500) {
            for task in some {
                self.0.write_all(format!("{question} {}\r\n", driver::key(*task)).as_bytes()).await?;
            }
            self.0.flush().await?;
            for _ in some {
                let reply = self.reply().await?;
                let right = match work {
                    Work::Set => reply == "100",
                    Work::SetEx => reply.parse::<i64>().is_ok_and(|ttl| ttl > 0),
                    Work::Incr => reply == "1",
                    Work::Fields(kib) => reply == kib.to_string(),
                };
                wrong += usize::from(!right);
            }
        }
        Ok(wrong)
    }

    /// Waits until none of these SETs is missing; how many are, when the patience is over.
    pub async fn missing_in_the_end(&mut self, tasks: &[u32], patience: Duration) -> io::Result<usize> {
        self.wrong_in_the_end(Work::Set, tasks, patience).await
    }

    /// The same of tasks that do other work.
    pub async fn wrong_in_the_end(&mut self, work: Work, tasks: &[u32], patience: Duration) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            let missing = self.wrong(work, tasks).await?;
            if missing == 0 || start.elapsed() > patience {
                return Ok(missing);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn info(&mut self, section: &str) -> io::Result<String> {
        self.0.write_all(format!("INFO {section}\r\n").as_bytes()).await?;
        self.0.flush().await?;
        self.reply().await
    }

    async fn number(&mut self) -> io::Result<u64> {
        let reply = self.reply().await?;
        reply.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, reply))
    }

    /// A reply of one line or of one string, as text.
    async fn reply(&mut self) -> io::Result<String> {
        let line = self.line().await?;
        match line.split_at_checked(1) {
            Some(("+" | ":", text)) => Ok(text.to_owned()),
            Some(("$", "-1")) => Ok(String::new()),
            Some(("$", length)) => {
                let length: usize = length.parse().map_err(|_| io::ErrorKind::InvalidData)?;
                let mut bytes = vec![0; length + 2];
                self.0.read_exact(&mut bytes).await?;
                bytes.truncate(length);
                String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, line)),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.0.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
