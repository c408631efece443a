//! A proxy between a sidecar and Redis that understands commands, so that it can lose exactly what a test wants lost.
//!
//! Each connection has a thread that carries one command at a time: it reads a command, passes it on, and carries the
//! reply back. So a fault falls between two commands, never within one.

use std::{
    io::{self, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
};

use super::resp;

/// What happens to commands that no rule answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nothing arrives, on either side, and nothing is closed. A connection that has met this stays so until it is
    /// cut, as one behind a firewall that lost its state.
    BlackHole,
    /// Commands run, and their replies are lost.
    DropReplies,
    /// New connections are closed at once.
    Refuse,
}

type Rule = Box<dyn FnMut(&[Vec<u8>]) -> Option<String> + Send>;

pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    target: u16,
    mode: Mode,
    rule: Option<Rule>,
    /// Commands with this first argument run, and their replies are lost.
    replies_lost: Option<String>,
    accepted: usize,
    connections: Vec<TcpStream>,
    commands: Vec<Vec<String>>,
    closed: bool,
}

impl Proxy {
    pub fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(Mutex::new(State {
            target,
            mode: Mode::Pass,
            rule: None,
            replies_lost: None,
            accepted: 0,
            connections: Vec::new(),
            commands: Vec::new(),
            closed: false,
        }));
        let shared = state.clone();
        std::thread::spawn(move || accept(&listener, &shared));
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    pub fn set_mode(&self, mode: Mode) {
        self.state().mode = mode;
    }

    pub fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Has commands with this first argument run, and their replies lost.
    pub fn lose_replies_of(&self, key: &str) {
        self.state().replies_lost = Some(key.to_owned());
    }

    /// Answers those commands itself for which the rule has an answer, an error without its dash (`LOADING …`).
    pub fn answer(&self, rule: impl FnMut(&[Vec<u8>]) -> Option<String> + Send + 'static) {
        self.state().rule = Some(Box::new(rule));
    }

    pub fn answer_nothing(&self) {
        self.state().rule = None;
    }

    /// Closes every connection that is open now.
    pub fn cut(&self) {
        for connection in self.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> usize {
        self.state().accepted
    }

    /// The first argument of each command that came in, in their order.
    pub fn first_arguments(&self) -> Vec<String> {
        self.state().commands.iter().filter_map(|command| command.get(1).cloned()).collect()
    }

    /// How many commands of that name came in with that first argument.
    pub fn count(&self, name: &str, key: &str) -> usize {
        let is_it = |command: &&Vec<String>| {
            command.first().is_some_and(|found| found == name) && command.get(1).is_some_and(|found| found == key)
        };
        self.state().commands.iter().filter(is_it).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state().closed = true;
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn accept(listener: &TcpListener, state: &Arc<Mutex<State>>) {
    while let Ok((client, _)) = listener.accept() {
        let mut shared = lock(state);
        if shared.closed {
            return;
        }
        shared.accepted += 1;
        if shared.mode == Mode::Refuse {
            continue;
        }
        // Not to be reached: as a port that nothing listens on.
        let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target)) else { continue };
        shared.connections.extend([&client, &server].into_iter().filter_map(|stream| stream.try_clone().ok()));
        drop(shared);
        let state = state.clone();
        std::thread::spawn(move || {
            let _ = carry(&client, &server, &state);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }
}

enum Fate {
    Answer(String),
    Pass,
    Swallow,
    LoseReply,
}

fn carry(mut client: &TcpStream, mut server: &TcpStream, state: &Mutex<State>) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut commands = BufReader::with_capacity(64 * 1024, client.try_clone()?);
    let mut replies = BufReader::with_capacity(64 * 1024, server.try_clone()?);
    let mut dead = false;
    loop {
        let mut raw = Vec::new();
        let command = arguments(resp::read_raw(&mut commands, &mut raw)?);
        match fate(&command, &mut dead, state) {
            Fate::Answer(error) => client.write_all(format!("-{error}\r\n").as_bytes())?,
            Fate::Swallow => {}
            fate @ (Fate::Pass | Fate::LoseReply) => {
                server.write_all(&raw)?;
                let mut reply = Vec::new();
                resp::read_raw(&mut replies, &mut reply)?;
                // The link may have died while the reply was on its way.
                dead |= lock(state).mode == Mode::BlackHole;
                if matches!(fate, Fate::Pass) && !dead {
                    client.write_all(&reply)?;
                }
            }
        }
    }
}

fn arguments(command: resp::Reply) -> Vec<Vec<u8>> {
    let resp::Reply::Array(items) = command else { return Vec::new() };
    items.into_iter().map(|item| if let resp::Reply::Bulk(Some(bytes)) = item { bytes } else { Vec::new() }).collect()
}

fn fate(command: &[Vec<u8>], dead: &mut bool, state: &Mutex<State>) -> Fate {
    let mut state = lock(state);
    state.commands.push(command.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect());
    *dead |= state.mode == Mode::BlackHole;
    if *dead {
        return Fate::Swallow;
    }
    if let Some(answer) = state.rule.as_mut().and_then(|rule| rule(command)) {
        return Fate::Answer(answer);
    }
    if command.get(1).is_some_and(|key| state.replies_lost.as_ref().is_some_and(|lost| lost.as_bytes() == *key)) {
        return Fate::LoseReply;
    }
    match state.mode {
        Mode::DropReplies => Fate::LoseReply,
        Mode::Pass | Mode::BlackHole | Mode::Refuse => Fate::Pass,
    }
}
