//! What about a target will hurt later: what its user may not do, and how its server is set up.
//!
//! Nothing here keeps a task from being tried. It is what an operator should hear of before it matters.

use deadpool_redis::redis::{Pipeline, Value};
use jiff::Timestamp;

use super::{
    ProbeReport, Target,
    control::{self, Control, unless_refused},
    errors,
    marker::Marker,
    version::Fence,
};

use crate::{
    finding::Severity,
    retry::{Failure, FailureClass, ReasonClass},
};

/// Clocks further apart than this change what a TTL or a deadline means.
const MAX_CLOCK_OFFSET_MS: u64 = 1000;

/// What was found. Metrics and logs use its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingCode {
    Unreachable,
    OwnKeysDenied,
    ScriptsDenied,
    ClientsDenied,
    Evicts,
    NotPersistent,
    NoReplicasRequired,
    ClockOff,
    Unchecked,
}

impl FindingCode {
    pub const ALL: [Self; 9] = [
        Self::Unreachable,
        Self::OwnKeysDenied,
        Self::ScriptsDenied,
        Self::ClientsDenied,
        Self::Evicts,
        Self::NotPersistent,
        Self::NoReplicasRequired,
        Self::ClockOff,
        Self::Unchecked,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::OwnKeysDenied => "own-keys-denied",
            Self::ScriptsDenied => "scripts-denied",
            Self::ClientsDenied => "clients-denied",
            Self::Evicts => "evicts",
            Self::NotPersistent => "not-persistent",
            Self::NoReplicasRequired => "no-replicas-required",
            Self::ClockOff => "clock-off",
            Self::Unchecked => "unchecked",
        }
    }
}

/// Something that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub code: FindingCode,
    pub severity: Severity,
    /// What is so, and what follows from it.
    pub message: String,
    /// What ends it.
    pub remedy: String,
}

impl Target {
    /// Looks for everything that a [`FindingCode`] names. What is worst comes first; nothing found is an empty list.
    ///
    /// It writes and removes keys of Redrive's own.
    ///
    /// # Cancellation
    ///
    /// Dropping the future leaves a key of Redrive's own, which expires.
    pub async fn inspect(&self) -> Vec<Finding> {
        let mut findings = match self.inspect_reachable().await {
            Ok(findings) => findings,
            Err(failure) => vec![unreachable(&failure)],
        };
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        findings
    }

    async fn inspect_reachable(&self) -> Result<Vec<Finding>, Failure> {
        let mut control = self.control().await?;
        let report = control.probe(&self.probe_key).await?;
        let mut findings = self.denied_units(&report).await?;
        findings.extend(control.denied_clients().await?);
        findings.extend(control.setup().await?.findings());
        findings.extend(clock(report.clock_offset_ms));
        self.keep(control);
        Ok(findings)
    }

    /// Runs what tasks are run with, around a command that every server refuses for its own sake.
    async fn denied_units(&self, report: &ProbeReport) -> Result<Vec<Finding>, Failure> {
        let mut connection = self.connect().await?;
        let never = || {
            let args = [self.probe_key.as_bytes(), b"1", b"NX", b"XX"];
            std::iter::once(("SET", args.into_iter()))
        };
        let marker = Marker { id_hash: fastrand::u64(..), unit: 0, accepted_at: Timestamp::now() };
        let mut batch = self.batch();
        // By its source and by its digest, as one may be permitted without the other.
        batch.push_command("EVAL", [b"return 1".as_slice(), b"0"].into_iter());
        batch.push_script(b"return 1", std::iter::empty(), std::iter::empty());
        // The script asks for a marker only where there may be one.
        let [bucket, _] = self.own.buckets(&marker, "").map(|bucket| bucket.to_string());
        batch.push_command("HGET", [bucket.as_bytes(), b"x"].into_iter());
        batch.push_once(&marker, never());
        batch.push_versioned(&Fence { version: 0, id: "probe" }, self.probe_key.as_bytes(), never());
        let failures: Vec<Option<Failure>> =
            connection.execute(batch).await.results.into_iter().map(Result::err).collect();
        if let Some(failure) = failures.iter().flatten().find(|failure| failure.class != FailureClass::Dead) {
            return Err(errors::as_hold(failure.clone()));
        }
        let [eval, evalsha, read, once, versioned] = [0, 1, 2, 3, 4].map(|unit| failures[unit].as_ref());
        let script = eval.or(evalsha).filter(|failure| is_denied(failure));
        let read = read.filter(|failure| is_denied(failure));
        // The command itself is refused for its arguments. Anything else is of what is around it.
        let [once, versioned] =
            [once, versioned].map(|failure| failure.filter(|failure| failure.reason != ReasonClass::BadArgument));
        // Without scripts nothing is known of the keys that they write.
        let own_keys =
            report.canary_refused.as_ref().or(if script.is_none() { read.or(once).or(versioned) } else { None });
        Ok(script.map(scripts_denied).into_iter().chain(own_keys.map(own_keys_denied)).collect())
    }
}

impl Control {
    async fn denied_clients(&mut self) -> Result<Option<Finding>, Failure> {
        let mut questions = Pipeline::with_capacity(2);
        questions.cmd("CLIENT").arg("LIST").arg("TYPE").arg("normal");
        // Nobody has the last of all ids.
        questions.cmd("CLIENT").arg("KILL").arg("ID").arg(i64::MAX);
        let [list, kill] = self.ask(&mut questions).await?;
        let refusals = [self.name_refused.clone(), unless_refused(&list)?, unless_refused(&kill)?];
        Ok(refusals.iter().flatten().find(|refusal| is_denied(refusal)).map(clients_denied))
    }

    async fn setup(&mut self) -> Result<Setup, Failure> {
        let mut questions = Pipeline::with_capacity(6);
        questions.cmd("INFO");
        for name in CONFIGURED {
            questions.cmd("CONFIG").arg("GET").arg(name);
        }
        let [info, configured @ ..]: [Value; 1 + CONFIGURED.len()] = self.ask(&mut questions).await?;
        Ok(Setup::new(control::text(&info), configured.each_ref().map(configured_value)))
    }
}

fn is_denied(failure: &Failure) -> bool {
    matches!(failure.reason, ReasonClass::NoPermission | ReasonClass::UnknownCommand)
}

/// What is asked of `CONFIG GET`.
const CONFIGURED: [&str; 5] = ["maxmemory", "maxmemory-policy", "appendonly", "save", "min-replicas-to-write"];

/// The one value in what `CONFIG GET` answers.
fn configured_value(reply: &Value) -> Option<&str> {
    match reply {
        Value::Array(pair) => control::text(pair.get(1)?),
        _ => None,
    }
}

/// How a server is set up. None: it does not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setup {
    /// The policy by which it evicts keys when its memory is full; empty if it does not.
    evicts_by: Option<String>,
    persists: Option<bool>,
    /// It has replicas, and acknowledges writes that none of them has.
    acknowledges_alone: Option<bool>,
}

impl Setup {
    fn new(info: Option<&str>, configured: [Option<&str>; CONFIGURED.len()]) -> Self {
        let told = |field| control::info(info?, field);
        let [maxmemory, policy, appendonly, save, min_replicas] = configured;
        let bounded = maxmemory.or(told("maxmemory")).map(|limit| limit != "0");
        let policy = policy.or(told("maxmemory_policy"));
        let logs = appendonly.map(|value| value == "yes").or(told("aof_enabled").map(|value| value == "1"));
        let saves = save.map(|points| !points.is_empty());
        let replicated = told("connected_slaves").map(|count| count != "0");
        // The field is there only if some are asked for.
        let told_required = || info.map(|_| told("min_slaves_good_slaves").is_some());
        let required = min_replicas.map(|count| count != "0").or_else(told_required);
        Self {
            evicts_by: match (bounded, policy) {
                (Some(false), _) | (_, Some("noeviction")) => Some(String::new()),
                (Some(true), Some(policy)) => Some(policy.to_owned()),
                _ => None,
            },
            persists: either(logs, saves),
            acknowledges_alone: either(replicated.map(|is| !is), required).map(|safe| !safe),
        }
    }

    fn findings(self) -> Vec<Finding> {
        let unknown: Vec<&str> = [
            (self.evicts_by.is_none(), "evicts keys"),
            (self.persists.is_none(), "keeps its data on disk"),
            (self.acknowledges_alone.is_none(), "acknowledges writes that no replica has"),
        ]
        .into_iter()
        .filter_map(|(is_unknown, what)| is_unknown.then_some(what))
        .collect();
        let mut findings = Vec::new();
        findings.extend(self.evicts_by.filter(|policy| !policy.is_empty()).map(|policy| evicts(&policy)));
        findings.extend((self.persists == Some(false)).then(not_persistent));
        findings.extend((self.acknowledges_alone == Some(true)).then(no_replicas_required));
        findings.extend((!unknown.is_empty()).then(|| unchecked(&unknown)));
        findings
    }
}

/// Whether one of two holds, as far as they are known.
fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

fn finding(code: FindingCode, severity: Severity, message: String, remedy: &str) -> Finding {
    Finding { code, severity, message, remedy: remedy.to_owned() }
}

fn unreachable(failure: &Failure) -> Finding {
    finding(
        FindingCode::Unreachable,
        Severity::Error,
        format!("the target cannot be used now: {} ({})", failure.message, failure.code),
        "Tasks are kept until it can be. If this is not an outage, put right the URL or what the message names",
    )
}

fn scripts_denied(failure: &Failure) -> Finding {
    finding(
        FindingCode::ScriptsDenied,
        Severity::Error,
        format!("the user may not run scripts ({}), so no task can be executed that must run once", failure.code),
        "Allow it EVAL and EVALSHA: docs/redis-user.md has a user that works",
    )
}

fn own_keys_denied(failure: &Failure) -> Finding {
    finding(
        FindingCode::OwnKeysDenied,
        Severity::Error,
        format!(
            "the user may not use Redrive's own keys ({}), so no task can be executed that must run once or has a \
             version, and a target that takes no writes is noticed late",
            failure.code
        ),
        "Allow it the keys that begin with `redis.own_prefix`, and the commands in docs/redis-user.md",
    )
}

fn clients_denied(failure: &Failure) -> Finding {
    finding(
        FindingCode::ClientsDenied,
        Severity::Warning,
        format!(
            "the user may not name, list and kill connections ({}), so a write that was given up on can still arrive \
             and overwrite a newer one, unless it runs once or has a version",
            failure.code
        ),
        "Allow it CLIENT SETNAME, CLIENT LIST and CLIENT KILL",
    )
}

fn evicts(policy: &str) -> Finding {
    finding(
        FindingCode::Evicts,
        Severity::Warning,
        format!(
            "when its memory is full the server evicts keys ({policy}), with them what Redrive remembers of tasks that \
             ran: they could run twice"
        ),
        "Set `maxmemory-policy noeviction`, or leave enough memory",
    )
}

fn not_persistent() -> Finding {
    finding(
        FindingCode::NotPersistent,
        Severity::Warning,
        "the server keeps nothing on disk: a restart loses what tasks have written".to_owned(),
        "Set `appendonly yes`, unless what is in it may be lost",
    )
}

fn no_replicas_required() -> Finding {
    finding(
        FindingCode::NoReplicasRequired,
        Severity::Warning,
        "the server has replicas and acknowledges writes that none of them has: a failover can lose them".to_owned(),
        "Set `min-replicas-to-write 1`, unless what is in it may be lost",
    )
}

fn clock(offset_ms: i64) -> Option<Finding> {
    (offset_ms.unsigned_abs() > MAX_CLOCK_OFFSET_MS).then(|| {
        let (ahead, apart) = (if offset_ms > 0 { "ahead of" } else { "behind" }, offset_ms.unsigned_abs() as f64 / 1e3);
        finding(
            FindingCode::ClockOff,
            Severity::Warning,
            format!("the server's clock is {apart:.1} s {ahead} this machine's, so keys expire that much off"),
            "Synchronise both clocks",
        )
    })
}

fn unchecked(what: &[&str]) -> Finding {
    finding(
        FindingCode::Unchecked,
        Severity::Warning,
        format!("the server does not tell whether it {}", what.join(", and whether it ")),
        "Allow the user INFO and CONFIG GET, or look yourself",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(info: Option<&str>, configured: [Option<&str>; 5]) -> Vec<&'static str> {
        Setup::new(info, configured).findings().iter().map(|finding| finding.code.as_str()).collect()
    }

    #[test]
    fn setup_is_read_from_either_source() {
        let info = "maxmemory:100\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:0\r\nconnected_slaves:2\r\n";
        let configured = [Some("100"), Some("allkeys-lru"), Some("no"), Some(""), Some("0")];
        assert_eq!(codes(Some(info), configured), ["evicts", "not-persistent", "no-replicas-required"]);
        assert_eq!(codes(Some(info), [None; 5]), ["evicts", "no-replicas-required", "unchecked"]);
        assert_eq!(codes(None, configured), ["evicts", "not-persistent", "unchecked"]);
        assert_eq!(codes(None, [None; 5]), ["unchecked"]);
    }

    #[test]
    fn setup_without_anything_wrong_is_found_to_be_so() {
        let info = "maxmemory:100\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\nconnected_slaves:2\r\n\
                    min_slaves_good_slaves:2\r\n";
        assert!(codes(Some(info), [None; 5]).is_empty());
        assert!(codes(None, [Some("0"), Some("allkeys-lru"), Some("yes"), Some(""), Some("1")]).is_empty());
        assert!(codes(Some("connected_slaves:0"), [Some("0"), None, Some("no"), Some("3600 1"), None]).is_empty());
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::HashSet<_> = FindingCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), FindingCode::ALL.len());
    }

    #[test]
    fn clocks_may_differ_by_a_second() {
        assert_eq!(clock(1000), None);
        assert_eq!(clock(-1000), None);
        let message = |offset| clock(offset).expect("it is too far off").message;
        assert!(message(1500).contains("1.5 s ahead of"));
        assert!(message(-61_000).contains("61.0 s behind"));
    }
}
