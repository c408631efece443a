//! How to log in, and what that costs.
//!
//! SCRAM hashes the password thousands of times for a login: milliseconds of a core, and much more where a process has
//! only a part of one. There is a connection for each partition, so that many logins begin at once. On the thread that
//! does everything, each would take as long as all of them, none would end in time, and heartbeats would wait. Hence:
//!
//! - It is hashed on other threads.
//! - Our own connections hash once: what comes of it is kept, and good at every broker of the cluster.
//! - The library keeps nothing. So it logs in once at a time, and its time begins with its turn.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA256, PBKDF2_HMAC_SHA512};
use rsasl::{
    callback::{Context, Request, SessionCallback, SessionData},
    mechanisms::scram::properties::{Iterations, Salt, SaltedPassword},
    prelude::{Mechname, SASLClient, SASLConfig, SASLError, Session, SessionError},
    property::{AuthId, Password},
};
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{error::Elapsed, timeout},
};
use tokio_util::sync::CancellationToken;

use super::config::Mechanism;

/// A name, a password, and a mechanism to prove them by. Copies share what the password was hashed to.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) mechanism: Mechanism,
    pub(super) username: String,
    pub(super) password: String,
    salted: Arc<Mutex<Salted>>,
    /// Held by the connection of the library that logs in.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A password with a broker's salt, hashed as often as the broker asks for.
#[derive(Default)]
struct Salted {
    salt: Vec<u8>,
    iterations: u32,
    hash: Vec<u8>,
}

impl Login {
    pub(super) fn new(mechanism: Mechanism, username: String, password: String) -> Self {
        Self { mechanism, username, password, salted: Arc::default(), turn: Arc::default() }
    }

    /// Whether it takes so long that others would notice.
    pub(super) fn hashes(&self) -> bool {
        hashing(self.mechanism).is_some()
    }

    /// The client's side of a login on one connection.
    pub(super) fn begin(&self) -> Result<Exchange, SASLError> {
        let name = Mechname::parse(self.mechanism.as_str().as_bytes()).expect("it is a mechanism's name");
        let config = SASLConfig::builder().with_default_mechanisms().with_callback(self.clone())?;
        Ok(Exchange { session: SASLClient::new(config).start_suggested(&[name])?, hashes: self.hashes() })
    }

    /// Lets the library connect: in its turn, within a time that begins with that, and on another thread.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops `connecting` as soon as that waits for something.
    pub(super) async fn in_turn<T: Send + 'static>(
        &self,
        within: Duration,
        connecting: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Elapsed> {
        let turn = self.turn.clone().lock_owned().await;
        let (runtime, given_up) = (Handle::current(), CancellationToken::new());
        let _guard = given_up.clone().drop_guard();
        // The thread polls, and nothing else: timers and sockets stay the runtime's.
        let aside = spawn_blocking(move || {
            let connected = runtime.block_on(given_up.run_until_cancelled_owned(connecting));
            drop(turn);
            connected
        });
        let connected = timeout(within, aside).await?;
        Ok(connected.expect("the library does not panic").expect("whoever would give it up waits here"))
    }
}

impl SessionCallback for Login {
    fn callback(&self, _: &SessionData, context: &Context<'_>, request: &mut Request<'_>) -> Result<(), SessionError> {
        request.satisfy::<AuthId>(&self.username)?;
        match (hashing(self.mechanism), context.get_ref::<Salt>(), context.get_ref::<Iterations>()) {
            (Some(hashing), Some(salt), Some(iterations)) => {
                // Who comes meanwhile waits on a thread of its own, and need not hash.
                let mut salted = self.salted.lock().expect("nothing panics while it holds this lock");
                if salted.salt != salt || salted.iterations != *iterations {
                    *salted = Salted::new(hashing, &self.password, salt, *iterations);
                }
                request.satisfy::<SaltedPassword>(&salted.hash)?;
            }
            _ => {
                request.satisfy::<Password>(self.password.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// How a mechanism hashes, and to how many bytes.
fn hashing(mechanism: Mechanism) -> Option<(pbkdf2::Algorithm, usize)> {
    match mechanism {
        Mechanism::Plain => None,
        Mechanism::ScramSha256 => Some((PBKDF2_HMAC_SHA256, 32)),
        Mechanism::ScramSha512 => Some((PBKDF2_HMAC_SHA512, 64)),
    }
}

impl Salted {
    fn new((algorithm, bytes): (pbkdf2::Algorithm, usize), password: &str, salt: &[u8], iterations: u32) -> Self {
        let times = NonZeroU32::new(iterations).expect("a login without iterations is refused before");
        let mut hash = vec![0; bytes];
        pbkdf2::derive(algorithm, times, salt, password.as_bytes(), &mut hash);
        Self { salt: salt.to_owned(), iterations, hash }
    }
}

/// A login on its way.
pub(super) struct Exchange {
    session: Session,
    hashes: bool,
}

/// What is to be said next.
pub(super) struct Step {
    /// None where the client has nothing to say.
    pub(super) words: Option<Bytes>,
    pub(super) is_last: bool,
}

impl Exchange {
    /// Takes what the broker has said, which is nothing at first.
    pub(super) async fn step(self, heard: Option<Bytes>) -> Result<(Self, Step), SessionError> {
        match self.hashes {
            true => spawn_blocking(move || self.step_here(heard)).await.expect("the mechanism does not panic"),
            false => self.step_here(heard),
        }
    }

    fn step_here(mut self, heard: Option<Bytes>) -> Result<(Self, Step), SessionError> {
        let mut words = Vec::new();
        let state = self.session.step(heard.as_deref(), &mut words)?;
        let words = state.has_sent_message().then(|| words.into());
        Ok((self, Step { words, is_last: state.is_finished() }))
    }
}

#[cfg(test)]
mod tests;
