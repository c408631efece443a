//! Values of which a part must never be shown.

use std::fmt;

const MASK: &str = "***";

/// The URL of a Redis: `redis://`, `rediss://`, `unix://` or `redis+unix://`. Its password is shown by nothing but
/// [`RedisUrl::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// Takes a URL whose outline is right; its details are the client's business. The error says what would have
    /// been right and has nothing of the URL in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected =
            || "a URL such as `redis://127.0.0.1:6379/0`, `rediss://host:6379` or `unix:///path`".to_string();
        let (scheme, rest) = text.split_once("://").ok_or_else(expected)?;
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let complete = match scheme {
            "redis" | "rediss" => {
                let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                !host.is_empty() && !host.starts_with(':') && database.bytes().all(|b| b.is_ascii_digit())
            }
            "unix" | "redis+unix" => rest.starts_with('/'),
            _ => false,
        };
        if !complete || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(expected());
        }
        Ok(Self(text.into()))
    }

    /// Which database of which server it is, without who asks: `host:port/0`, or the socket's path.
    pub fn server(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").expect("it was parsed");
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        if scheme.contains("unix") {
            return rest.to_owned();
        }
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
        let port = if has_port { "" } else { ":6379" };
        let database = if database.is_empty() { "0" } else { database };
        format!("{}{port}/{database}", host.to_ascii_lowercase())
    }

    /// The URL with its password: for the client that connects, for nothing that is written anywhere.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked_url(&self.0))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A URL without its password, whether it stands before the host or in the query. Also takes what is no URL, of
/// which everything after a user's name is hidden.
pub fn masked_url(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // The last `@` decides, so that one in an unescaped password hides more, not less.
    let (credentials, rest) = match rest.rsplit_once('@') {
        Some((credentials, rest)) => (Some(credentials), rest),
        None => (None, rest),
    };
    let credentials = match credentials.map(|credentials| credentials.split_once(':')) {
        Some(Some((user, _))) => format!("{user}:{MASK}@"),
        Some(None) => format!("{MASK}@"),
        None => String::new(),
    };
    match rest.split_once('?') {
        Some((host, _)) => format!("{scheme}{credentials}{host}?{MASK}"),
        None => format!("{scheme}{credentials}{rest}"),
    }
}

/// A token read from a file. Nothing shows it but [`Token::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes the text of a token file: one line of printable ASCII without spaces, at least 16 characters. White
    /// space around it is not part of it. None if it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let token = text.trim();
        (token.len() >= 16 && token.bytes().all(|b| b.is_ascii_graphic())).then(|| Self(token.into()))
    }

    /// The token itself, for comparing and for the header that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_is_masked_wherever_it_stands() {
        let check = |url: &str, shown: &str| assert_eq!(masked_url(url), shown);
        check("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0");
        check("redis://:hunter2@host:6379", "redis://:***@host:6379");
        check("rediss://app:hunt@er2@host/1", "rediss://app:***@host/1");
        check("redis://hunter2@host", "redis://***@host");
        check("unix:///run/redis.sock?pass=hunter2", "unix:///run/redis.sock?***");
        check("app:hunter2@host", "app:***@host");
    }

    #[test]
    fn url_keeps_its_password_to_itself() {
        let url = RedisUrl::parse("redis://app:hunter2@host:6379/0").expect("the URL is right");
        assert_eq!(url.expose(), "redis://app:hunter2@host:6379/0");
        assert!(!format!("{url} {url:?}").contains("hunter2"));
    }

    #[test]
    fn half_a_url_is_refused_without_showing_it() {
        for wrong in ["", "hunter2", "http://hunter2", "redis://", "redis://:6379", "redis://h/x", "unix://hunter2"] {
            let expected = RedisUrl::parse(wrong).expect_err(wrong);
            assert!(!expected.contains("hunter2"));
        }
    }

    #[test]
    fn token_is_one_long_word() {
        assert_eq!(Token::parse("0123456789abcdef\n").expect("long enough").expose(), "0123456789abcdef");
        assert!(Token::parse("short").is_none());
        assert!(Token::parse("two words that are long").is_none());
    }
}
