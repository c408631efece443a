//! How many partitions each of our topics has: asked for every now and then, so that one that grows is noticed, and at
//! once when somebody needs a topic that is not known.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use tokio::sync::watch;

/// What was heard last. A task elsewhere does the asking.
pub(super) struct Topics {
    counts: Mutex<HashMap<String, u32>>,
    /// The number of the newest wish to hear anew.
    wished: watch::Sender<u64>,
    /// The newest wish that was fulfilled.
    fulfilled: watch::Sender<u64>,
}

impl Default for Topics {
    fn default() -> Self {
        Self { counts: Mutex::default(), wished: watch::Sender::new(0), fulfilled: watch::Sender::new(0) }
    }
}

impl Topics {
    /// How many partitions a topic has, as heard last.
    pub(super) fn known(&self, topic: &str) -> Option<u32> {
        self.counts().get(topic).copied()
    }

    /// The same; where it is not known, as heard anew. Waits as long as that takes.
    pub(super) async fn count(&self, topic: &str) -> Option<u32> {
        if let Some(known) = self.known(topic) {
            return Some(known);
        }
        let mut fulfilled = self.fulfilled.subscribe();
        let mut wish = 0;
        self.wished.send_modify(|newest| {
            *newest += 1;
            wish = *newest;
        });
        // The sender is ours: it is not gone.
        let _ = fulfilled.wait_for(|fulfilled| *fulfilled >= wish).await;
        self.known(topic)
    }

    /// For the task that asks: wakes when there is a new wish.
    pub(super) fn wishes(&self) -> watch::Receiver<u64> {
        self.wished.subscribe()
    }

    /// What was heard, in answer to a wish and all before it.
    pub(super) fn hear(&self, counts: HashMap<String, u32>, wish: u64) {
        let mut known = self.counts();
        for (topic, count) in &counts {
            match known.get(topic) {
                Some(before) if before != count => {
                    tracing::info!(kafka.topic = topic, "Topic {topic} has {count} partitions now; it had {before}");
                }
                _ => {}
            }
        }
        *known = counts;
        drop(known);
        self.fulfilled.send_replace(wish);
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.counts.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn unknown_topic_is_asked_for_and_a_known_one_is_not() {
        let topics = Topics::default();
        let wishes = topics.wishes();
        topics.hear([("a".to_owned(), 3)].into(), 0);
        assert_eq!(topics.count("a").await, Some(3));
        assert_eq!(*wishes.borrow(), 0);

        let answer = async {
            let mut wishes = topics.wishes();
            let wish = *wishes.wait_for(|wish| *wish == 1).await.expect("it lives");
            // An answer to a question that was asked before the topic was made.
            topics.hear([("a".to_owned(), 3)].into(), wish - 1);
            tokio::task::yield_now().await;
            topics.hear([("a".to_owned(), 3), ("b".to_owned(), 5)].into(), wish);
        };
        assert_eq!(tokio::join!(topics.count("b"), answer).0, Some(5));
    }
}
