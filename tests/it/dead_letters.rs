//! A task is never dead in silence.
