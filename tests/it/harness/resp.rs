//! The Redis protocol, as far as a test and a proxy must read it.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
};

use super::PATIENCE;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Status(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

impl Reply {
    /// The text of a status, an error or a value; nothing for nil.
    pub fn text(&self) -> String {
        match self {
            Self::Status(text) | Self::Error(text) => text.clone(),
            Self::Integer(number) => number.to_string(),
            Self::Bulk(Some(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Bulk(None) => String::new(),
            Self::Array(_) => self.texts().join(" "),
        }
    }

    pub fn texts(&self) -> Vec<String> {
        match self {
            Self::Array(items) => items.iter().map(Self::text).collect(),
            one => vec![one.text()],
        }
    }
}

/// A connection that asks one thing after the other.
pub struct Client {
    stream: TcpStream,
    replies: BufReader<TcpStream>,
}

impl Client {
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { replies: BufReader::new(stream.try_clone()?), stream })
    }

    pub fn ask<A: AsRef<[u8]>>(&mut self, args: &[A]) -> io::Result<Reply> {
        let bytes: Vec<&[u8]> = args.iter().map(AsRef::as_ref).collect();
        write_command(&mut self.stream, &bytes)?;
        self.next()
    }

    /// What the server says next, asked or not.
    pub fn next(&mut self) -> io::Result<Reply> {
        read_reply(&mut self.replies)
    }
}

pub fn write_command(to: &mut impl Write, args: &[&[u8]]) -> io::Result<()> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    to.write_all(&bytes)
}

/// Reads one reply.
pub fn read_reply(from: &mut impl BufRead) -> io::Result<Reply> {
    read_raw(from, &mut Vec::new())
}

/// Reads one reply (or one command, which has the same form), and appends its bytes as they were.
pub fn read_raw(from: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<Reply> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    raw.extend_from_slice(&line);
    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
    let malformed = || io::Error::other(format!("not a reply: {text:?}"));
    let (kind, rest) = text.split_at_checked(1).ok_or_else(malformed)?;
    let number = || rest.parse::<i64>().map_err(|_| malformed());
    match kind {
        "+" => Ok(Reply::Status(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => Ok(Reply::Integer(number()?)),
        "$" => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Reply::Bulk(None)) };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes)?;
            raw.extend_from_slice(&bytes);
            bytes.truncate(length);
            Ok(Reply::Bulk(Some(bytes)))
        }
        "*" => (0..number()?).map(|_| read_raw(from, raw)).collect::<io::Result<_>>().map(Reply::Array),
        _ => Err(malformed()),
    }
}
