//! As much of a Redis client as it takes to look at what became of the tasks.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream},
    net::TcpStream,
};

use super::driver;

pub struct Redis(BufStream<TcpStream>);

impl Redis {
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufStream::with_capacity(64 * 1024, 64 * 1024, stream)))
    }

    pub async fn flush(&mut self) -> io::Result<()> {
        self.0.write_all(b"FLUSHALL SYNC\r\n").await?;
        self.0.flush().await?;
        self.line().await.map(drop)
    }

    /// How many keys there are.
    pub async fn size(&mut self) -> io::Result<u64> {
        self.0.write_all(b"DBSIZE\r\n").await?;
        self.0.flush().await?;
        self.number().await
    }

    /// How many of these tasks' keys are not there.
    pub async fn missing(&mut self, tasks: &[u32]) -> io::Result<usize> {
        let mut missing = 0;
        for some in tasks.chunks(500) {
            for task in some {
                self.0.write_all(format!("EXISTS {}\r\n", driver::key(*task)).as_bytes()).await?;
            }
            self.0.flush().await?;
            for _ in some {
                missing += usize::from(self.number().await? == 0);
            }
        }
        Ok(missing)
    }

    /// Waits until none of these tasks is missing; how many are, when the patience is over.
    pub async fn missing_in_the_end(&mut self, tasks: &[u32], patience: Duration) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            let missing = self.missing(tasks).await?;
            if missing == 0 || start.elapsed() > patience {
                return Ok(missing);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn number(&mut self) -> io::Result<u64> {
        let line = self.line().await?;
        let number = line.strip_prefix(':').and_then(|number| number.parse().ok());
        number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line))
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
