//! What a group has stored for a partition: an offset, and words beside it. A topic that was deleted and made anew has the
//! same name and other records, so the words end with the topic's id, where brokers give it one (Kafka 2.8 and newer).
//!
//! ```text
//! | words |                    no id was known, or a person has set the offset
//! | words | @ | topic id |     in 22 characters, as Kafka's own tools show it
//! ```

use std::fmt;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};

use crate::log::Checkpoint;

/// What a broker calls one topic and no other, whatever its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TopicId([u8; 16]);

/// An offset that a group has stored, and the words beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) offset: i64,
    pub(super) metadata: String,
}

const BEFORE_ID: char = '@';

/// Characters that an id takes from the words.
pub(super) const ID_CHARS: usize = 1 + 22;

impl TopicId {
    /// Brokers that know no ids say zero.
    pub(super) fn new(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// Whether a topic of the same name is another one, as far as both are known.
    pub(super) fn differs(known: Option<Self>, now: Option<Self>) -> bool {
        known.zip(now).is_some_and(|(known, now)| known != now)
    }
}

impl Committed {
    /// What a broker has for a partition of this topic. None where that is nothing, or for another topic of its name.
    pub(super) fn read(offset: i64, stored: &str, topic: Option<TopicId>) -> Option<Self> {
        let (words, of) = match stored.rsplit_once(BEFORE_ID) {
            Some((words, id)) => (words, Some(id)),
            None => (stored, None),
        };
        let is_of_another = of.zip(topic).is_some_and(|(of, topic)| of != topic.to_string());
        (offset >= 0 && !is_of_another).then(|| Self { offset, metadata: words.to_owned() })
    }

    /// As its consumer wrote it. Where the words are not a consumer's, nothing above the offset is known to be finished.
    pub(super) fn into_checkpoint(self) -> Checkpoint {
        let state = BASE64_STANDARD.decode(&self.metadata).unwrap_or_default();
        Checkpoint { watermark: u64::try_from(self.offset).unwrap_or(0), state: state.into() }
    }

    /// How words are stored for a partition of this topic.
    pub(super) fn stored(words: &str, topic: Option<TopicId>) -> String {
        topic.map_or_else(|| words.to_owned(), |topic| format!("{words}{BEFORE_ID}{topic}"))
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_counts_for_the_topic_that_it_was_stored_for() {
        let topic = TopicId::new([0xfb; 16]);
        // Durable: this form does not change.
        assert_eq!(Committed::stored("AP8=", topic), "AP8=@-_v7-_v7-_v7-_v7-_v7-w");
        assert_eq!(Committed::stored("AP8=", topic).len(), "AP8=".len() + ID_CHARS);
        let read = |stored: &str, topic| Committed::read(7, stored, topic).map(|committed| committed.metadata);
        let words = || Some("AP8=".to_owned());
        assert_eq!(read("AP8=@-_v7-_v7-_v7-_v7-_v7-w", topic), words());
        assert_eq!(read("AP8=@-_v7-_v7-_v7-_v7-_v7-w", TopicId::new([1; 16])), None, "it has another id");
        assert_eq!(read("AP8=@-_v7-_v7-_v7-_v7-_v7-w", None), words(), "nobody tells");
        assert_eq!(read("AP8=", topic), words(), "nobody told");
        assert_eq!(Committed::read(-1, "", topic), None);
        assert_eq!(TopicId::new([0; 16]), None);
    }
}
