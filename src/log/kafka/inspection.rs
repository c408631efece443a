//! Which topics were looked at, and what about them breaks a promise or will. A topic that would lose tasks is given
//! none: they wait on this disk until it is mended.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use super::admin::{Finding, Inspection};
use crate::finding::Severity;

#[derive(Default)]
pub(super) struct Inspected {
    /// Of each topic that was looked at.
    topics: RwLock<BTreeMap<Arc<str>, Vec<Finding>>>,
    /// Held by who looks.
    pub(super) looking: tokio::sync::Mutex<()>,
}

impl Inspected {
    /// Whether tasks may be stored in a topic, and why not; none before it was looked at.
    pub(super) fn verdict(&self, topic: &str) -> Option<Result<(), String>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let forbids = topics.get(topic)?.iter().find(|finding| finding.code.forbids_tasks());
        Some(match forbids {
            None => Ok(()),
            Some(finding) => {
                Err(format!("topic {topic} is given no tasks, as {}; {}", finding.message, finding.remedy))
            }
        })
    }

    /// Takes what was found, and says what is new of it.
    pub(super) fn note(&self, inspection: Inspection) {
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        for topic in inspection.topics {
            let found: Vec<Finding> =
                inspection.findings.iter().filter(|finding| *finding.topic == *topic).cloned().collect();
            let before = topics.insert(topic.clone(), found).unwrap_or_default();
            let now = &topics[&topic];
            let is_news = |finding: &&Finding| before.iter().all(|known| known.code != finding.code);
            now.iter().filter(is_news).for_each(tell);
            for gone in before.iter().filter(|known| now.iter().all(|finding| finding.code != known.code)) {
                tracing::info!(kafka.topic = &*topic, code = gone.code.as_str(), "Topic {topic} was mended");
            }
        }
    }

    /// Those that were looked at.
    pub(super) fn topics(&self) -> Vec<Arc<str>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    pub(super) fn all(&self) -> Vec<Finding> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().flatten().cloned().collect()
    }

    /// Whether some topic is given no tasks: it is looked at more often.
    pub(super) fn forbids_any(&self) -> bool {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().flatten().any(|finding| finding.code.forbids_tasks())
    }
}

fn tell(finding: &Finding) {
    let Finding { code, severity, topic, message, remedy } = finding;
    let code = code.as_str();
    match severity {
        Severity::Error => tracing::error!(kafka.topic = topic, code, "Topic {topic}: {message}; {remedy}"),
        Severity::Warning => tracing::warn!(kafka.topic = topic, code, "Topic {topic}: {message}; {remedy}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::kafka::admin::FindingCode;

    fn found(codes: &[FindingCode]) -> Inspection {
        let finding = |code: &FindingCode| Finding {
            code: *code,
            severity: Severity::Error,
            topic: "t".into(),
            message: "it is so".into(),
            remedy: "mend it".into(),
        };
        Inspection { topics: vec!["t".into()], findings: codes.iter().map(finding).collect() }
    }

    #[test]
    fn topic_is_given_no_tasks_while_it_would_lose_them() {
        let inspected = Inspected::default();
        assert_eq!(inspected.verdict("t"), None, "nobody has looked yet");
        inspected.note(found(&[FindingCode::ReplicationLow, FindingCode::CompactedTasks]));
        let reason = "topic t is given no tasks, as it is so; mend it".to_owned();
        assert_eq!((inspected.verdict("t"), inspected.forbids_any()), (Some(Err(reason)), true));
        inspected.note(found(&[FindingCode::ReplicationLow]));
        assert_eq!((inspected.verdict("t"), inspected.forbids_any()), (Some(Ok(())), false));
        assert_eq!(inspected.all().len(), 1);
    }
}
