//! How the process is told to stop. What stopping means, and in which order, is decided where the parts are put
//! together: here is only the word.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Says that the process should stop. Clones say the same.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// One that only [`Shutdown::begin`] sets off.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGTERM or SIGINT sets off. A second signal ends the process at once with status 1: what was
    /// acknowledged is durable by then, so nothing is lost either way.
    ///
    /// Must be called within a runtime; the task that listens lives as long as that runtime.
    pub fn on_signals() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = Self::new();
        let listening = shutdown.clone();
        tokio::spawn(async move {
            let name = next_signal(&mut terminate, &mut interrupt).await;
            tracing::info!(signal = name, "Stopping on {name}; another signal ends the process at once");
            listening.begin();
            let name = next_signal(&mut terminate, &mut interrupt).await;
            tracing::warn!(signal = name, "Ending at once on a second signal, {name}");
            std::process::exit(1);
        });
        Ok(shutdown)
    }

    /// Sets it off. Idempotent.
    pub fn begin(&self) {
        self.0.cancel();
    }

    pub fn has_begun(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when it has been set off; at once if it was before.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing.
    pub async fn begun(&self) {
        self.0.cancelled().await;
    }

    /// The token behind it, for parts that select on one.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}

async fn next_signal(
    terminate: &mut tokio::signal::unix::Signal,
    interrupt: &mut tokio::signal::unix::Signal,
) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clones_hear_of_it() {
        let shutdown = Shutdown::new();
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.begun().await }
        });
        assert!(!shutdown.has_begun());
        shutdown.begin();
        waiting.await.expect("the waiter ends");
        assert!(shutdown.has_begun());
        assert!(shutdown.token().is_cancelled());
    }
}
