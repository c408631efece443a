//! Who may talk to a listener: the names it answers to, requests of web pages, the bearer token.
//!
//! A sidecar on loopback is reached by every process of its pod and by every web page that a developer opens. Pages
//! cannot read answers, since no CORS header is ever sent; what is refused here is that they make the server act, by a
//! form of another site or by a name that resolves to 127.0.0.1. Which guard a route has is decided where the route
//! is added, never from its path.

use std::fmt;

use axum::{
    extract::Request,
    http::{HeaderMap, Method, header},
};
use subtle::ConstantTimeEq;

use super::{
    problem::{Problem, ProblemType},
    server::Bound,
};

/// The token that opens `/admin`.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    pub fn new(token: &[u8]) -> Self {
        Self(token.into())
    }

    /// Takes as long for a wrong token as for the right one of the same length.
    fn opens(&self, given: &[u8]) -> bool {
        self.0.ct_eq(given).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// The names that a plane answers to, in lower case, each with and without the port.
#[derive(Clone, Debug, Default)]
pub struct Hosts(Vec<Box<str>>);

impl Hosts {
    /// The loopback names, the address of each listener that has one of its own, and `extra` names. A name without a
    /// port stands for itself and for itself with the port of a listener.
    pub fn new(listeners: &[Bound], extra: &[String]) -> Self {
        let mut names: Vec<String> = ["127.0.0.1", "localhost", "[::1]"].map(str::to_owned).into();
        let addresses: Vec<_> = listeners.iter().filter_map(Bound::tcp).collect();
        for address in addresses.iter().filter(|address| !address.ip().is_unspecified()) {
            names.push(match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_string(),
                std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            });
        }
        names.extend(extra.iter().map(|name| name.to_ascii_lowercase()));
        let mut hosts = Vec::new();
        for name in names {
            for address in &addresses {
                hosts.push(format!("{name}:{}", address.port()).into_boxed_str());
            }
            hosts.push(name.into_boxed_str());
        }
        Self(hosts)
    }

    fn allow(&self, host: &[u8]) -> bool {
        self.0.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(host))
    }
}

/// Marks requests that came over a unix socket, where no browser is and no `Host` is needed.
#[derive(Clone, Copy, Debug)]
pub(super) struct OverUnixSocket;

/// What a request must satisfy before its route is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    /// None: any host, and pages of other sites too. For probes, which the kubelet sends to the pod's address.
    pub hosts: Option<Hosts>,
    pub token: Option<Token>,
}

impl Guard {
    pub fn check(&self, request: &Request) -> Result<(), Problem> {
        if let Some(hosts) = &self.hosts {
            check_host(hosts, request)?;
            check_site(request)?;
        }
        self.token.as_ref().map_or(Ok(()), |token| check_token(token, request.headers()))
    }
}

fn check_host(hosts: &Hosts, request: &Request) -> Result<(), Problem> {
    if request.extensions().get::<OverUnixSocket>().is_some() {
        return Ok(());
    }
    let host = only(request.headers(), header::HOST)
        .and_then(|host| host.ok_or("is missing"))
        .map_err(|fault| Problem::new(ProblemType::InvalidRequest, format!("the Host header {fault}")))?;
    // A proxy's form of request names the host once more, and that one counts.
    let named_twice = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    if hosts.allow(host) && named_twice.is_none_or(|authority| hosts.allow(authority)) {
        return Ok(());
    }
    Err(Problem::new(ProblemType::WrongHost, "the request is for a host that this server does not answer to"))
}

fn check_site(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    let refused = |detail| Err(Problem::new(ProblemType::CrossSite, detail));
    if let Some(origin) = headers.get(header::ORIGIN) {
        let host = headers.get(header::HOST).map(|host| host.as_bytes());
        let origin = origin.as_bytes();
        let origin = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
        if !host.zip(origin).is_some_and(|(host, origin)| host.eq_ignore_ascii_case(origin)) {
            return refused("the request's Origin is another site");
        }
    }
    match headers.get("sec-fetch-site").map(|site| site.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        // Following a link from another site to the documentation shows that site nothing.
        Some(_) if is_navigation(request) => Ok(()),
        Some(_) => refused("the request was made by a page of another site"),
    }
}

fn is_navigation(request: &Request) -> bool {
    let is = |name: &str, value: &str| request.headers().get(name).is_some_and(|found| found == value);
    request.method() == Method::GET && is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document")
}

fn check_token(token: &Token, headers: &HeaderMap) -> Result<(), Problem> {
    let given = only(headers, header::AUTHORIZATION).ok().flatten().and_then(bearer);
    if given.is_some_and(|given| token.opens(given)) {
        return Ok(());
    }
    Err(Problem::new(ProblemType::Unauthorized, "the bearer token is missing or wrong"))
}

fn bearer(authorization: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = authorization.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// A header's only value, if it is there.
pub(super) fn only(headers: &HeaderMap, name: header::HeaderName) -> Result<Option<&[u8]>, &'static str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().map(|value| value.as_bytes());
    if values.next().is_some() { Err("is there more than once") } else { Ok(first) }
}
