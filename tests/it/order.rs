//! Tasks that share a key run in the order in which they were accepted.
