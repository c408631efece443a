//! One connection: hyper's protocol, our deadlines, the answer to what is no request, and the two ways in which it may
//! end without an answer.

use std::{
    convert::Infallible,
    future::{poll_fn, ready},
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{self, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use hyper::{
    body::Incoming,
    header::{CONNECTION, HeaderValue},
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{
    Limits, Stream,
    activity::{Activity, Watched},
    places::{KEPT, Place, Places},
};
use crate::{
    api::{front, guard::OverUnixSocket},
    telemetry::metrics::Metrics,
};

/// Bytes of a request's head, and of what is read at once of a body.
const BUFFER: usize = 16 * 1024;

/// How long, and how much, is read and thrown away of a request that was refused before its end: a socket that is
/// closed with unread bytes in it takes the answer with it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Marks an answer that must not be sent: whether the task was stored is unknown, so the connection is closed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the fate of a request is unknown")]
pub struct NoAnswer;

impl NoAnswer {
    pub fn response() -> Response {
        let mut response = StatusCode::INTERNAL_SERVER_ERROR.into_response();
        response.extensions_mut().insert(Self);
        response
    }
}

/// How the connections of a listener are served.
#[derive(Clone)]
pub(super) struct Connection {
    pub router: Router,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    pub places: Arc<Places>,
    pub over_unix: bool,
    /// Finish the request under way, take no other.
    pub shutdown: CancellationToken,
    /// Stop now.
    pub cut_off: CancellationToken,
}

impl Connection {
    pub async fn serve(self, stream: Box<dyn Stream>, place: Place) {
        let cut_off = self.cut_off.clone();
        cut_off.run_until_cancelled(self.serve_to_its_end(stream, place)).await;
    }

    async fn serve_to_its_end(self, stream: Box<dyn Stream>, place: Place) {
        let activity = Activity::new();
        let service = Requests { router: self.router, over_unix: self.over_unix, activity: activity.clone() };
        let io = TokioIo::new(Watched::new(stream, activity.clone()));
        let mut connection = http1::Builder::new().max_buf_size(BUFFER).serve_connection(io, service);

        let mut shutdown = pin!(self.shutdown.cancelled());
        let mut asked_to_end = pin!(self.places.asked_to_end());
        let mut stopping = false;
        let mut limits = self.limits;
        let mut alarm = pin!(sleep_until(Instant::now() + self.limits.header_timeout));
        let ended = poll_fn(|cx| {
            if !stopping && shutdown.as_mut().poll(cx).is_ready() {
                stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            if !activity.gives_way() && asked_to_end.as_mut().poll(cx).is_ready() {
                // To end it between two requests could lose the next one: so the next answer says that it ends.
                activity.give_way();
                limits.idle_timeout = limits.idle_timeout.min(KEPT);
            }
            if let Poll::Ready(ended) = connection.poll_without_shutdown(cx) {
                return Poll::Ready(Some(ended));
            }
            loop {
                // The alarm is set back only when it would ring too late, not with every request.
                let deadline = activity.deadline(&limits);
                if let Some(deadline) = deadline.filter(|deadline| *deadline < alarm.deadline()) {
                    alarm.as_mut().reset(deadline);
                }
                task::ready!(alarm.as_mut().poll(cx));
                let now = Instant::now();
                match deadline {
                    Some(deadline) if deadline <= now => return Poll::Ready(None),
                    later => alarm.as_mut().reset(later.unwrap_or(now + limits.idle_timeout)),
                }
            }
        })
        .await;
        let mut stream = connection.into_parts().io.into_inner();
        match ended {
            Some(Ok(())) => {}
            // The one refusal about which hyper says nothing at all is that of HTTP/2.
            Some(Err(error)) if stream.refusal_kept_back() || error.is_parse_version_h2() => {
                activity.answer_begins();
                let answer = answer(&mut stream, front::unreadable(&self.metrics, &error));
                // A client that does not read it has it no longer than other answers.
                if timeout(self.limits.idle_timeout, answer).await.is_err() {
                    return;
                }
            }
            Some(Err(_)) | None => return,
        }
        if !stopping {
            let _closing = self.places.close(place);
            linger(stream).await;
        }
    }
}

/// Has hyper send the answer as to any request: to one of ours, in place of what it could not read.
async fn answer(stream: &mut Watched, answer: Response) {
    let request = &b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"[..];
    let io = TokioIo::new(tokio::io::join(request, stream));
    let answer = Mutex::new(Some(answer));
    let service = service_fn(|_| ready(answer.lock().expect("held for a moment").take().ok_or(NoAnswer)));
    // Half closed: all of the request has been read.
    // If it cannot be sent, then the client is gone.
    let _ = http1::Builder::new().half_close(true).serve_connection(io, service).without_shutdown().await;
}

async fn linger(mut stream: Watched) {
    let drain = async {
        stream.shutdown().await?;
        let mut rest = stream.take(LINGER_BYTES as u64);
        let mut buffer = [0; 4096];
        while rest.read(&mut buffer).await? > 0 {}
        std::io::Result::Ok(())
    };
    // However it ends, the connection is closed.
    let _ = timeout(LINGER, drain).await;
}

/// Hands requests to the router.
struct Requests {
    router: Router,
    over_unix: bool,
    activity: Arc<Activity>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response;
    type Error = NoAnswer;
    type Future = BoxFuture<'static, Result<Response, NoAnswer>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.activity.request_begins();
        let mut request = request.map(Body::new);
        if self.over_unix {
            request.extensions_mut().insert(OverUnixSocket);
        }
        let answer = self.router.clone().oneshot(request);
        let activity = self.activity.clone();
        Box::pin(async move {
            let mut response = answer.await.unwrap_or_else(|never: Infallible| match never {});
            activity.answer_begins();
            if activity.gives_way() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            // An error makes hyper drop the connection without a word.
            response.extensions().get::<NoAnswer>().map_or(Ok(()), |no_answer| Err(*no_answer))?;
            Ok(response)
        })
    }
}
