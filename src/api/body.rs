//! Reading the body of a write: declared as plain JSON, bounded in size, time and memory.
//!
//! All bodies of the process together are bounded too, from before they are read until their tasks are stored. A
//! reservation starts with the declared length but at most [`STEP`], and grows with what arrives: a sender that
//! declares much and sends little reserves little, and cannot keep others out.

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{
    Config,
    guard::only,
    problem::{Problem, ProblemType},
};

/// What is reserved at once. Usual tasks are smaller and are refused, if they must be, before they are read.
const STEP: usize = 64 * 1024;

/// A body and the room it takes, which is given back when this is dropped.
pub(super) struct Read<'a> {
    pub headers: HeaderMap,
    pub body: Bytes,
    _room: SemaphorePermit<'a>,
}

/// Bounds on bodies, as configured.
pub(super) struct Intake {
    room: Semaphore,
    deadline: std::time::Duration,
}

impl Intake {
    pub fn new(config: &Config) -> Self {
        let room = config.max_inflight_bytes.min(Semaphore::MAX_PERMITS);
        Self { room: Semaphore::new(room), deadline: config.body_timeout }
    }

    /// Reads a body of at most `limit` bytes.
    ///
    /// # Cancellation
    ///
    /// Dropping the future gives the room back; what was read is gone.
    pub async fn read(&self, request: Request, limit: usize) -> Result<Read<'_>, Problem> {
        let (parts, body) = request.into_parts();
        check_media_type(&parts.headers)?;
        let declared = body.size_hint().upper().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        if declared.is_some_and(|declared| declared > limit) {
            return Err(too_large(limit));
        }
        let room = match self.reserve(declared.unwrap_or(limit).min(STEP)) {
            Ok(room) => room,
            Err(problem) => {
                // The server would have to close the connection behind a body that is not read, and a new one costs both
                // sides more than these bytes.
                if declared.is_some_and(|declared| declared <= STEP) {
                    let _ = timeout(self.deadline, discard(body)).await;
                }
                return Err(problem);
            }
        };
        let reading = self.collect(body, declared, limit, room);
        let (body, room) = timeout(self.deadline, reading).await.map_err(|_| {
            Problem::new(ProblemType::BodyTimeout, format!("the body did not arrive within {:?}", self.deadline))
        })??;
        Ok(Read { headers: parts.headers, body, _room: room })
    }

    async fn collect<'a>(
        &'a self,
        mut body: Body,
        declared: Option<usize>,
        limit: usize,
        mut room: SemaphorePermit<'a>,
    ) -> Result<(Bytes, SemaphorePermit<'a>), Problem> {
        // Most bodies arrive in one piece, which is kept as it is.
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Problem::new(ProblemType::InvalidRequest, "the body ended early or its encoding is broken")
            })?;
            let Ok(data) = frame.into_data() else { continue };
            let length = first.len() + all.len() + data.len();
            if length > limit {
                return Err(too_large(limit));
            }
            if length > room.num_permits() {
                let expected = declared.unwrap_or(limit).max(length);
                room.merge(self.reserve((expected - room.num_permits()).min(STEP.max(data.len())))?);
            }
            if first.is_empty() && all.is_empty() {
                first = data;
                continue;
            }
            if all.is_empty() {
                all.reserve(room.num_permits());
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
        Ok((if all.is_empty() { first } else { all.freeze() }, room))
    }

    fn reserve(&self, bytes: usize) -> Result<SemaphorePermit<'_>, Problem> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.room
            .try_acquire_many(bytes)
            .map_err(|_| Problem::new(ProblemType::Overloaded, "too many bytes are being stored at this moment"))
    }
}

async fn discard(mut body: Body) {
    while let Some(Ok(_)) = body.frame().await {}
}

fn too_large(limit: usize) -> Problem {
    Problem::new(ProblemType::PayloadTooLarge, format!("the body is over the limit of {limit} bytes"))
}

/// Checked before a byte of the body is read: a page of another site can send any other type without asking first.
fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |detail: &'static str| Err(Problem::new(ProblemType::UnsupportedMediaType, detail));
    match only(headers, header::CONTENT_TYPE) {
        Ok(Some(b"application/json")) => {}
        Ok(Some(other)) if is_json_in_utf8(other) => {}
        _ => return refused("the Content-Type must be application/json"),
    }
    if headers.contains_key(header::CONTENT_ENCODING) {
        return refused("the body must not have a Content-Encoding");
    }
    Ok(())
}

fn is_json_in_utf8(content_type: &[u8]) -> bool {
    let Ok(content_type) = std::str::from_utf8(content_type) else { return false };
    let (essence, parameter) = content_type.split_once(';').unwrap_or((content_type, "charset=utf-8"));
    let (name, value) = parameter.trim().split_once('=').unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
        && name.eq_ignore_ascii_case("charset")
        && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
}
