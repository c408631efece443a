//! Ending connections that must not write any more.
//!
//! What was sent and not answered may still be on its way: on a link that comes back after minutes it arrives then, and
//! overwrites what was written since. The server drops it if the connection that it belongs to has been killed before.

use std::collections::HashSet;

use deadpool_redis::redis::{Pipeline, Value};

use super::{
    ConnectionName, Target,
    connection_name::ProcessPrefix,
    control::{self, Control, unless_refused},
};
use crate::retry::Failure;

/// Connections that must not write any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Past {
    /// One, after something that it carried became ambiguous.
    Connection(ConnectionName),
    /// All of a process, by its boot id.
    Process([u8; 16]),
}

/// What became of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceReport {
    /// Connections that the server closed. The others had ended before.
    pub killed: usize,
    /// Why the target's user may not list or kill connections: what was sent over them may still arrive.
    pub not_permitted: Option<Failure>,
}

impl Target {
    /// Has the server close all these connections, so that nothing arrives over them once this has returned. The one
    /// that this is asked over is spared.
    ///
    /// A connection is killed by its id and its address together, so that after a restart or a failover, when ids
    /// begin anew, nobody else is hit.
    ///
    /// The error is always a hold: the target does not answer, and the connections may still exist.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves it open which of them were closed; asking again is harmless.
    pub async fn fence(&self, past: &[Past]) -> Result<FenceReport, Failure> {
        let mut control = self.control().await?;
        let report = control.fence(past).await?;
        self.keep(control);
        Ok(report)
    }
}

impl Control {
    async fn fence(&mut self, past: &[Past]) -> Result<FenceReport, Failure> {
        let mut questions = Pipeline::with_capacity(1);
        questions.cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal");
        let [list] = self.ask(&mut questions).await?;
        if let Some(refusal) = unless_refused(&list)? {
            return Ok(FenceReport { killed: 0, not_permitted: Some(refusal) });
        }
        let list = control::text(&list).unwrap_or_default();
        let own = self.name.to_string();
        let past = PastNames::new(past);
        let victims: Vec<Client<'_>> = list
            .lines()
            .filter_map(Client::parse)
            .filter(|client| client.name != own && past.contains(client.name))
            .collect();
        self.kill(&victims).await
    }

    async fn kill(&mut self, victims: &[Client<'_>]) -> Result<FenceReport, Failure> {
        let mut report = FenceReport { killed: 0, not_permitted: None };
        if victims.is_empty() {
            return Ok(report);
        }
        let mut kills = Pipeline::with_capacity(victims.len());
        for victim in victims {
            kills.cmd("CLIENT").arg("KILL").arg("ID").arg(victim.id).arg("ADDR").arg(victim.address);
        }
        for reply in self.ask_all(&mut kills).await? {
            match (&reply, unless_refused(&reply)?) {
                (_, Some(refusal)) => report.not_permitted = Some(refusal),
                (Value::Int(killed), None) => report.killed += usize::try_from(*killed).unwrap_or(0),
                (_, None) => {}
            }
        }
        Ok(report)
    }
}

struct PastNames {
    connections: HashSet<String>,
    processes: Vec<String>,
}

impl PastNames {
    fn new(past: &[Past]) -> Self {
        let mut names = Self { connections: HashSet::new(), processes: Vec::new() };
        for past in past {
            match past {
                Past::Connection(name) => {
                    names.connections.insert(name.to_string());
                }
                Past::Process(boot_id) => names.processes.push(ProcessPrefix(*boot_id).to_string()),
            }
        }
        names
    }

    fn contains(&self, name: &str) -> bool {
        self.connections.contains(name) || self.processes.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// A line of what `CLIENT LIST` answers.
#[derive(Debug, PartialEq, Eq)]
struct Client<'a> {
    id: &'a str,
    address: &'a str,
    name: &'a str,
}

impl<'a> Client<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        Some(Self { id: field("id")?, address: field("addr")?, name: field("name")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_any_server_are_read() {
        let line = "id=7 addr=10.0.0.1:4711 laddr=10.0.0.2:6379 fd=8 name=redrive-00-1 age=1 user=default lib-name=";
        let client = Client { id: "7", address: "10.0.0.1:4711", name: "redrive-00-1" };
        assert_eq!(Client::parse(line), Some(client));
        let unnamed = Client::parse("id=7 addr=[::1]:4711 fd=8 name= age=1").expect("it is one");
        assert_eq!((unnamed.address, unnamed.name), ("[::1]:4711", ""));
        assert_eq!(Client::parse(""), None);
    }

    #[test]
    fn past_is_told_by_name() {
        let name = |process: u8, number| ConnectionName { boot_id: [process; 16], number };
        let past = PastNames::new(&[Past::Connection(name(1, 1)), Past::Process([2; 16])]);
        let contains = |process, number| past.contains(&name(process, number).to_string());
        assert!(contains(1, 1) && contains(2, 1) && contains(2, 12));
        assert!(!contains(1, 11) && !contains(1, 2) && !contains(3, 1) && !past.contains(""));
    }
}
