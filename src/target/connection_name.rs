//! What Redrive calls its connections, so that those of a process that is gone can be told on the server.

use std::fmt;

/// The name of one connection: `redrive-<boot id>-<number>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionName {
    /// The process that made it.
    pub boot_id: [u8; 16],
    /// Not used twice in a process for one target; and two targets, which may be one server, hardly use the same.
    pub number: u64,
}

impl fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", ProcessPrefix(self.boot_id), self.number)
    }
}

impl fmt::Debug for ConnectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the names of all connections of a process begin with.
pub(super) struct ProcessPrefix(pub(super) [u8; 16]);

impl fmt::Display for ProcessPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "redrive-{:032x}-", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_begins_as_those_of_its_process() {
        let mut boot_id = [0; 16];
        boot_id[0] = 0x0a;
        boot_id[15] = 0xff;
        let name = ConnectionName { boot_id, number: 7 };
        assert_eq!(name.to_string(), "redrive-0a0000000000000000000000000000ff-7");
        assert!(name.to_string().starts_with(&ProcessPrefix(boot_id).to_string()));
    }
}
