//! Our own accept loop: the listeners of one plane, and what bounds their connections.
//!
//! `axum::serve` has no deadline for a request's head, no bound on connections and no unix socket beside TCP. Here
//! every connection has a place; when none is left, a few wait and the kernel's backlog holds the rest. While any wait,
//! those that are served give way: see `places`.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

mod activity;
mod connection;
mod listener;
mod places;

pub use connection::NoAnswer;
pub use listener::BindError;

use connection::Connection;
use listener::Listener;
use places::Places;

use crate::telemetry::metrics::Metrics;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Port 0 picks a free one.
    Tcp(SocketAddr),
    /// A socket that only this user may open.
    Unix(PathBuf),
}

/// Where a listener really is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Bound {
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

/// Bounds on the connections of one plane.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_connections: usize,
    /// From a request's first byte, or from the connection's start, to the end of the request's head.
    pub header_timeout: Duration,
    /// Between requests, and for a client that does not read its answer.
    pub idle_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_connections: 1024, header_timeout: Duration::from_secs(5), idle_timeout: Duration::from_secs(60) }
    }
}

/// Bound listeners that do not serve yet: connections wait in the kernel until they do.
pub struct Server {
    listeners: Vec<Listener>,
    limits: Limits,
}

impl Server {
    /// Binds all or none.
    ///
    /// # Errors
    ///
    /// With the address that could not be bound, and why.
    pub fn bind(listen: &[Listen], limits: Limits) -> Result<Self, BindError> {
        let listeners = listen.iter().map(Listener::bind).collect::<Result<_, _>>()?;
        Ok(Self { listeners, limits })
    }

    /// Where the listeners are, in the order in which they were asked for.
    pub fn bound(&self) -> Vec<Bound> {
        self.listeners.iter().map(Listener::bound).collect()
    }

    /// Serves until `shutdown`; then accepts no more, lets the requests under way finish, and cuts off what is not
    /// finished after `grace`. What is no request never reaches the router, and is counted in `metrics` here.
    ///
    /// # Cancellation
    ///
    /// Dropping the future stops accepting; connections that are open are served until they end. Use `shutdown`.
    pub async fn serve(self, router: Router, metrics: Arc<Metrics>, shutdown: CancellationToken, grace: Duration) {
        let connections = TaskTracker::new();
        let cut_off = CancellationToken::new();
        let places = Arc::new(Places::new(self.limits.max_connections));
        let accepting = self.listeners.into_iter().map(|listener| {
            let connection = Connection {
                router: router.clone(),
                metrics: metrics.clone(),
                limits: self.limits,
                places: places.clone(),
                over_unix: listener.bound().tcp().is_none(),
                shutdown: shutdown.clone(),
                cut_off: cut_off.clone(),
            };
            accept_until_shutdown(listener, connection, connections.clone())
        });
        futures_util::future::join_all(accepting).await;
        connections.close();
        if tokio::time::timeout(grace, connections.wait()).await.is_err() {
            warn!("Cutting off {} connections that did not finish in time", connections.len());
            cut_off.cancel();
            connections.wait().await;
        }
    }
}

async fn accept_until_shutdown(listener: Listener, connection: Connection, connections: TaskTracker) {
    let shutdown = connection.shutdown.clone();
    let mut failures = Failures::default();
    loop {
        let accepted = async {
            let waiting = connection.places.wait().await;
            (waiting, listener.accept().await)
        };
        let (waiting, stream) = match shutdown.run_until_cancelled(accepted).await {
            Some((waiting, Ok(stream))) => (waiting, stream),
            Some((_, Err(error))) => {
                failures.wait_after(&error).await;
                continue;
            }
            None => break,
        };
        let connection = connection.clone();
        connections.spawn(async move {
            let place = connection.shutdown.run_until_cancelled(connection.places.take()).await;
            drop(waiting);
            if let Some(place) = place {
                connection.serve(stream, place).await;
            }
        });
    }
    info!("Stopped listening on {}", listener.bound());
}

/// Accepting fails for as long as no file descriptor is free, and at once: without a pause the loop would spin, and
/// without a bound the log would fill.
#[derive(Default)]
struct Failures {
    told: Option<Instant>,
}

impl Failures {
    async fn wait_after(&mut self, error: &io::Error) {
        // The client went away while it waited: only that connection is concerned.
        if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
            return;
        }
        if self.told.is_none_or(|told| told.elapsed() > Duration::from_secs(10)) {
            self.told = Some(Instant::now());
            warn!("Accepting a connection failed, trying again: {error}");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[cfg(test)]
mod tests;
