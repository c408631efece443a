//! What a connection is doing, and until when it may.
//!
//! hyper's own timeout for the head of a request also runs between requests. Here the two are apart: a client may keep
//! a connection open for a minute, and must then send a head within seconds. The state is one word that the stream,
//! the service and the deadline share; all three are polled by one task, so the order of accesses is its order.
//!
//! It also tells whose answer is written. What hyper cannot read as a request it refuses by itself, with a bare status
//! that no setting of it changes, and ends the connection. Every answer of ours comes out of the service; so a head
//! that is written while no request is being answered is hyper's own. The stream keeps that one back, and the
//! connection sends a problem in its place.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use super::{Limits, Stream};

/// Milliseconds since the connection's start, times four, plus the phase.
pub(super) struct Activity {
    start: Instant,
    word: AtomicU64,
    gives_way: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The head of a request arrives.
    Head = 0,
    /// A request is handled: its body, and what is done with it, have bounds of their own.
    Serving = 1,
    /// The answer is being sent.
    Answering = 2,
    /// What there was to send is sent, and the next request is waited for.
    Idle = 3,
}

impl Activity {
    /// A new connection has said nothing yet and must: it is in the head of its first request.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            word: AtomicU64::new(Phase::Head as u64),
            gives_way: AtomicBool::new(false),
        })
    }

    fn enter(&self, phase: Phase) {
        let since = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX >> 2);
        self.word.store(since << 2 | phase as u64, Ordering::Relaxed);
    }

    fn is(&self, phase: Phase) -> bool {
        self.word.load(Ordering::Relaxed) & 3 == phase as u64
    }

    pub fn request_begins(&self) {
        self.word.store(Phase::Serving as u64, Ordering::Relaxed);
    }

    /// From now on each answer is the last one.
    pub fn give_way(&self) {
        self.gives_way.store(true, Ordering::Relaxed);
    }

    pub fn gives_way(&self) -> bool {
        self.gives_way.load(Ordering::Relaxed)
    }

    pub fn answer_begins(&self) {
        self.enter(Phase::Answering);
    }

    fn answer_progresses(&self) {
        // Also after a pause, in which what had been ready of the answer was all sent.
        if self.is(Phase::Answering) || self.is(Phase::Idle) {
            self.enter(Phase::Answering);
        }
    }

    /// Idle since the answer's last progress, so the time stays.
    fn all_is_sent(&self) {
        if self.is(Phase::Answering) {
            self.word.fetch_or(Phase::Idle as u64, Ordering::Relaxed);
        }
    }

    /// When the connection has been at this for too long. None: that is not for the connection to say.
    pub fn deadline(&self, limits: &Limits) -> Option<Instant> {
        let word = self.word.load(Ordering::Relaxed);
        let limit = match word & 3 {
            phase if phase == Phase::Head as u64 => limits.header_timeout,
            phase if phase == Phase::Serving as u64 => return None,
            _ => limits.idle_timeout,
        };
        Some(self.start + Duration::from_millis(word >> 2) + limit)
    }
}

/// A stream that notes when a request begins to arrive and when an answer makes progress.
pub(super) struct Watched {
    stream: Box<dyn Stream>,
    activity: Arc<Activity>,
    refusal_kept_back: bool,
}

impl Watched {
    pub fn new(stream: Box<dyn Stream>, activity: Arc<Activity>) -> Self {
        Self { stream, activity, refusal_kept_back: false }
    }

    /// Whether hyper refused a request by itself and the client has not been told.
    pub fn refusal_kept_back(&self) -> bool {
        self.refusal_kept_back
    }

    fn is_refusal_by_hyper(&self, bytes: &[u8]) -> bool {
        // The rest of an answer whose body pauses is written while nothing seems to be answered, too; but no head.
        bytes.starts_with(b"HTTP/1.") && (self.activity.is(Phase::Head) || self.activity.is(Phase::Idle))
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before && self.activity.is(Phase::Idle) {
            self.activity.enter(Phase::Head);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.first().is_some_and(|first| self.is_refusal_by_hyper(first)) {
            self.refusal_kept_back = true;
            return Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()));
        }
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.activity.answer_progresses();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.activity.all_is_sent();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
