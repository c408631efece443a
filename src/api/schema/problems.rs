//! The problems that groups of operations share, written once.

use utoipa::IntoResponses;

use crate::api::problem::ProblemDocument;

/// What a write may be answered with when nothing was accepted.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation only")]
pub(in crate::api) enum WriteProblems {
    /// The body is not JSON, or a header is malformed.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemDocument<'static>),
    /// The request was made by a web page of another site.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemDocument<'static>),
    /// The path does not know this method.
    #[response(status = 405, content_type = "application/problem+json",
        headers(("Allow" = String, description = "The methods that the path knows.")))]
    MethodNotAllowed(ProblemDocument<'static>),
    /// The body did not arrive in time.
    #[response(status = 408, content_type = "application/problem+json")]
    BodyTimeout(ProblemDocument<'static>),
    /// The body is over the limit.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemDocument<'static>),
    /// The body is not declared as plain JSON.
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(ProblemDocument<'static>),
    /// The `Host` is not one of this server's names.
    #[response(status = 421, content_type = "application/problem+json")]
    WrongHost(ProblemDocument<'static>),
    /// The request is well formed and refused: `errors` names the fields at fault.
    #[response(status = 422, content_type = "application/problem+json")]
    Refused(ProblemDocument<'static>),
    /// The request line and the headers are over the limit.
    #[response(status = 431, content_type = "application/problem+json")]
    HeadTooLarge(ProblemDocument<'static>),
    /// The server failed.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemDocument<'static>),
    /// Nothing was stored; try again.
    #[response(status = 503, content_type = "application/problem+json",
        headers(("Retry-After" = u32, description = "Seconds to wait.")))]
    Unavailable(ProblemDocument<'static>),
}

/// What a read of the data plane may be answered with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation only")]
pub(in crate::api) enum ReadProblems {
    /// The request is malformed.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemDocument<'static>),
    /// The request was made by a web page of another site.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(ProblemDocument<'static>),
    /// It is not known.
    #[response(status = 404, content_type = "application/problem+json")]
    Unknown(ProblemDocument<'static>),
    /// The path does not know this method.
    #[response(status = 405, content_type = "application/problem+json",
        headers(("Allow" = String, description = "The methods that the path knows.")))]
    MethodNotAllowed(ProblemDocument<'static>),
    /// The `Host` is not one of this server's names.
    #[response(status = 421, content_type = "application/problem+json")]
    WrongHost(ProblemDocument<'static>),
    /// The request line and the headers are over the limit.
    #[response(status = 431, content_type = "application/problem+json")]
    HeadTooLarge(ProblemDocument<'static>),
    /// The server failed.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemDocument<'static>),
    /// The storage cannot be read now.
    #[response(status = 503, content_type = "application/problem+json",
        headers(("Retry-After" = u32, description = "Seconds to wait.")))]
    Unavailable(ProblemDocument<'static>),
}

/// What the admin API adds to [`ReadProblems`].
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation only")]
pub(in crate::api) enum TokenProblems {
    /// The bearer token is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json",
        headers(("WWW-Authenticate" = String, description = "`Bearer`.")))]
    Unauthorized(ProblemDocument<'static>),
}

/// What a probe may be answered with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "documentation only")]
pub(in crate::api) enum ProbeProblems {
    /// The request is malformed.
    #[response(status = 400, content_type = "application/problem+json")]
    BadRequest(ProblemDocument<'static>),
    /// The path does not know this method.
    #[response(status = 405, content_type = "application/problem+json",
        headers(("Allow" = String, description = "The methods that the path knows.")))]
    MethodNotAllowed(ProblemDocument<'static>),
    /// The request line and the headers are over the limit.
    #[response(status = 431, content_type = "application/problem+json")]
    HeadTooLarge(ProblemDocument<'static>),
    /// No.
    #[response(status = 503, content_type = "application/problem+json",
        headers(("Retry-After" = u32, description = "Seconds to wait.")))]
    NotReady(ProblemDocument<'static>),
}
