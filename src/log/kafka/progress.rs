//! How far partitions are that others may work on: what the group has committed, asked for when somebody wants to know,
//! and at most every few seconds.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{
    Inner,
    admin::{Admin, AdminError, ByPlace},
    committed::Committed,
};
use crate::log::{Checkpoint, Partition};

/// What is known is asked for anew when it is older.
const FRESH: Duration = Duration::from_secs(2);
/// How long anybody waits for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was heard last. Whoever asks holds it.
#[derive(Default)]
pub(super) struct Progress(tokio::sync::Mutex<Heard>);

#[derive(Default)]
struct Heard {
    committed: ByPlace<Option<Committed>>,
    /// When it was asked for, whether or not that was answered.
    asked_at: Option<Instant>,
    admin: Option<Admin>,
}

impl Inner {
    pub(super) async fn committed(&self, partition: &Partition) -> Option<Checkpoint> {
        let place = (self.topic_of(&partition.queue).into(), partition.index);
        let look = async {
            let mut heard = self.progress.0.lock().await;
            if heard.asked_at.is_none_or(|at| at.elapsed() >= FRESH) {
                heard.asked_at = Some(Instant::now());
                // A connection that is given up in the middle is of no more use: then it is not put back.
                let admin = heard.admin.take();
                let mut admin = admin.unwrap_or_else(|| Admin::new(self.config.clone(), self.security.clone()));
                match timeout(PATIENCE / 2, self.all_committed(&mut admin)).await {
                    Ok(Ok(committed)) => {
                        heard.committed = committed;
                        heard.admin = Some(admin);
                    }
                    Ok(Err(error)) => tracing::debug!("What is committed is not known now: {error}"),
                    Err(_) => tracing::debug!("What is committed was not told in time"),
                }
            }
            heard.committed.get(&place).cloned().flatten()
        };
        timeout(PATIENCE, look).await.ok().flatten().map(Committed::into_checkpoint)
    }

    async fn all_committed(&self, admin: &mut Admin) -> Result<ByPlace<Option<Committed>>, AdminError> {
        let depths = self.source.depths.all();
        let places: Vec<_> = depths.into_iter().map(|(place, _)| place).collect();
        let mut topics: Vec<_> = places.iter().map(|(topic, _)| topic.clone()).collect();
        topics.dedup();
        let cluster = admin.cluster(&topics).await?;
        admin.committed(&cluster, &places).await
    }
}
