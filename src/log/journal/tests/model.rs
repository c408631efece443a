#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    AcknowledgeBeforeSync,
    NoDirectorySync,
    UnlinkBeforeCheckpoint,
    ReuseSequence,
    ReaderAheadOfSync,
}
