//! A proxy between a sidecar and Redis that understands commands, so that it can lose exactly what a test wants lost.
//!
//! A connection through it is a link. Each link has a thread that carries one command at a time: it passes a command
//! on, and carries the reply back. So a fault falls between two commands, never within one; and what a link has lost
//! stays lost, as on a real one: no reply is followed by a later one that could be taken for it.

use std::{
    io::{self, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        mpsc::{self, Receiver, TryRecvError},
    },
    time::{Duration, Instant},
};

use super::{resp, wait_until};

/// What happens to commands that no rule answers, and to the links that they come over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Nothing arrives, on either side, and nothing is closed. A link that has met this stays so until it is cut, as
    /// one behind a firewall that lost its state.
    BlackHole,
    /// Nothing arrives for now. What was sent over a link that has met this arrives when it is healed, and not before:
    /// late, and even if the one who sent it has given it up and gone.
    Stall,
    /// Commands run, and their replies are lost.
    DropReplies,
    /// Commands run, and their replies take so long.
    Late(Duration),
    /// New connections are closed at once.
    Refuse,
}

/// How a link ends when it has carried the replies that it was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastReply {
    /// Commands run, and no more replies come.
    ThenSilence,
    ThenReset,
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
    /// The link over which the next command comes that has this in an argument is stalled, or loses its replies.
    stalled_by: Option<String>,
    muted_by: Option<String>,
    /// How many replies pass, over all links, until one link ends like that.
    replies_left: Option<(usize, LastReply)>,
    /// Links that have, or had and have not delivered yet, what was stalled.
    stalled: usize,
    /// How often stalled links were healed.
    healed: usize,
    /// The names of commands that ran late since the last time.
    late: Vec<String>,
    accepted: usize,
    /// Both sides of each link, by its number.
    connections: Vec<(usize, TcpStream)>,
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
            stalled_by: None,
            muted_by: None,
            replies_left: None,
            stalled: 0,
            healed: 0,
            late: Vec::new(),
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

    /// As [`Proxy::url`], for a user of the server.
    pub fn url_for(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@{}/0", self.address)
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

    /// Lets so many more replies pass; then the link that carries the next one ends like that.
    pub fn answer_only(&self, replies: usize, last: LastReply) {
        self.state().replies_left = Some((replies, last));
    }

    /// Stalls one link: that over which the next command comes that has this in an argument. Others are not concerned.
    pub fn stall_link_of(&self, text: &str) {
        self.state().stalled_by = Some(text.to_owned());
    }

    /// As [`Proxy::stall_link_of`], but commands run, and the replies of that link are lost.
    pub fn mute_link_of(&self, text: &str) {
        self.state().muted_by = Some(text.to_owned());
    }

    /// Lets everything pass from now on. Links stay as they are.
    pub fn calm(&self) {
        let mut state = self.state();
        state.mode = Mode::Pass;
        (state.stalled_by, state.muted_by, state.replies_left) = (None, None, None);
    }

    /// Links that wait to be healed.
    pub fn stalled(&self) -> usize {
        self.state().stalled
    }

    /// Ends every stall, and returns when all that was held up has arrived where anybody still takes it: the names of
    /// the commands that ran. The target must be up.
    pub fn heal(&self) -> Vec<String> {
        {
            let mut state = self.state();
            if state.mode == Mode::Stall {
                state.mode = Mode::Pass;
            }
            // What arrives late would be the next to be stalled.
            state.stalled_by = None;
            state.healed += 1;
        }
        wait_until("stalled links to deliver what they have", || self.stalled() == 0);
        std::mem::take(&mut self.state().late)
    }

    /// Answers those commands itself for which the rule has an answer, an error without its dash (`LOADING …`).
    pub fn answer(&self, rule: impl FnMut(&[Vec<u8>]) -> Option<String> + Send + 'static) {
        self.state().rule = Some(Box::new(rule));
    }

    pub fn answer_nothing(&self) {
        self.state().rule = None;
    }

    /// Closes every connection that is open now, but for links that are stalled: nothing gets through there.
    pub fn cut(&self) {
        for (_, connection) in self.state().connections.drain(..) {
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

    /// How many commands came in with that in an argument.
    pub fn count_with(&self, text: &str) -> usize {
        let has = |command: &&Vec<String>| command.iter().any(|argument| argument.contains(text));
        self.state().commands.iter().filter(has).count()
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
        let number = shared.accepted;
        let sides = [&client, &server].into_iter().filter_map(|stream| Some((number, stream.try_clone().ok()?)));
        shared.connections.extend(sides);
        drop(shared);
        let state = state.clone();
        std::thread::spawn(move || {
            let mut link =
                Link { number, client: &client, server: &server, state: &state, dead: false, mute: false, owes: false };
            let _ = link.carry();
            drop(link);
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }
}

/// A command as it came in.
struct Arrived {
    raw: Vec<u8>,
    command: Vec<Vec<u8>>,
    at: Instant,
}

/// One connection through the proxy.
struct Link<'a> {
    number: usize,
    client: &'a TcpStream,
    server: &'a TcpStream,
    state: &'a Mutex<State>,
    /// Swallows everything.
    dead: bool,
    /// Its replies are lost.
    mute: bool,
    /// It was stalled, and has not delivered yet all that came meanwhile.
    owes: bool,
}

impl Link<'_> {
    fn carry(&mut self) -> io::Result<()> {
        self.client.set_nodelay(true)?;
        self.server.set_nodelay(true)?;
        let commands = arriving(self.client.try_clone()?);
        let mut replies = BufReader::with_capacity(64 * 1024, self.server.try_clone()?);
        while let Some(arrived) = self.next(&commands) {
            self.note(&arrived);
            self.suffer(&arrived)?;
            if self.dead {
                continue;
            }
            if let Some(error) = self.own_answer(&arrived) {
                self.reply(format!("-{error}\r\n").as_bytes());
                continue;
            }
            let mut server = self.server;
            server.write_all(&arrived.raw)?;
            let mut reply = Vec::new();
            resp::read_raw(&mut replies, &mut reply)?;
            if self.owes {
                self.state().late.push(String::from_utf8_lossy(&arrived.command[0]).into_owned());
            }
            // The link may have got worse while the reply was on its way.
            self.suffer(&arrived)?;
            std::thread::sleep(self.lateness(&arrived));
            self.spend_reply(&arrived)?;
            self.reply(&reply);
        }
        Ok(())
    }

    /// The next command; none when the client has sent its last.
    fn next(&mut self, commands: &Receiver<Arrived>) -> Option<Arrived> {
        match commands.try_recv() {
            Ok(arrived) => Some(arrived),
            Err(TryRecvError::Empty) => {
                self.settle();
                commands.recv().ok()
            }
            Err(TryRecvError::Disconnected) => None,
        }
    }

    fn note(&self, arrived: &Arrived) {
        let mut state = self.state();
        state.commands.push(arrived.command.iter().map(|arg| String::from_utf8_lossy(arg).into_owned()).collect());
    }

    /// Lets the mode have its effect on the link, and waits where it is stalled.
    fn suffer(&mut self, arrived: &Arrived) -> io::Result<()> {
        let shared = self.state;
        let mut state = lock(shared);
        self.dead |= state.mode == Mode::BlackHole;
        let by_name = state.stalled_by.take_if(|text| arrived.has(text)).is_some();
        if self.dead || !(by_name || state.mode == Mode::Stall) {
            return Ok(());
        }
        if !self.owes {
            self.owes = true;
            state.stalled += 1;
            state.connections.retain(|(number, _)| *number != self.number);
        }
        let healed = state.healed;
        while state.healed == healed {
            if state.closed {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(2));
            state = lock(shared);
        }
        Ok(())
    }

    fn own_answer(&self, arrived: &Arrived) -> Option<String> {
        self.state().rule.as_mut().and_then(|rule| rule(&arrived.command))
    }

    /// How long a reply that has come must still wait.
    fn lateness(&self, arrived: &Arrived) -> Duration {
        match self.state().mode {
            Mode::Late(by) => (arrived.at + by).saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        }
    }

    /// Decides whether this is a reply that gets lost, and the link with it.
    fn spend_reply(&mut self, arrived: &Arrived) -> io::Result<()> {
        let mut state = lock(self.state);
        let is_lost = |key: &String| arrived.command.get(1).is_some_and(|found| found == key.as_bytes());
        self.mute |= state.mode == Mode::DropReplies || state.replies_lost.as_ref().is_some_and(is_lost);
        self.mute |= state.muted_by.take_if(|text| arrived.has(text)).is_some();
        match state.replies_left.take() {
            Some((0, LastReply::ThenSilence)) => self.mute = true,
            Some((0, LastReply::ThenReset)) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some((left, last)) => state.replies_left = Some((left - 1, last)),
            None => {}
        }
        Ok(())
    }

    /// A client that is gone does not take back what it has sent: the commands behind this one are carried all the
    /// same.
    fn reply(&self, reply: &[u8]) {
        if !self.dead && !self.mute {
            let mut client = self.client;
            let _ = client.write_all(reply);
        }
    }

    /// All that was stalled has been delivered.
    fn settle(&mut self) {
        if std::mem::take(&mut self.owes) {
            self.state().stalled -= 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(self.state)
    }
}

impl Drop for Link<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Arrived {
    fn has(&self, text: &str) -> bool {
        self.command.iter().any(|argument| argument.windows(text.len()).any(|found| found == text.as_bytes()))
    }
}

/// Reads what a client sends as soon as it is sent: a client that closes behind it does not take it back.
fn arriving(client: TcpStream) -> Receiver<Arrived> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut commands = BufReader::with_capacity(64 * 1024, client);
        loop {
            let mut raw = Vec::new();
            let Ok(command) = resp::read_raw(&mut commands, &mut raw) else { return };
            let arrived = Arrived { raw, command: arguments(command), at: Instant::now() };
            if sender.send(arrived).is_err() {
                return;
            }
        }
    });
    receiver
}

fn arguments(command: resp::Reply) -> Vec<Vec<u8>> {
    let resp::Reply::Array(items) = command else { return Vec::new() };
    items.into_iter().map(|item| if let resp::Reply::Bulk(Some(bytes)) = item { bytes } else { Vec::new() }).collect()
}
