//! Turns Nagle's algorithm off on connections that a library made.
//!
//! `rskafka` never sets TCP_NODELAY and sends a request's length by itself, so that each request of 8 to 64 KiB waits
//! for the other side's delayed acknowledgement: 44 ms, measured on real brokers, and 0.4 ms with the option set. It
//! hands out no socket, so all of this process are looked at. Everything else in Redrive sets the option when it
//! connects or accepts; what is found without it is one of those. Such a connection also gets a limit to how long
//! sent bytes may stay unacknowledged: the library finishes writing a request that was given up, and with a peer that is
//! gone it would do so for a quarter of an hour, holding the socket.
//!
//! Goes when the library does this by itself.

use std::{
    fs, io,
    os::fd::{BorrowedFd, RawFd},
    time::Duration,
};

use rustix::net::sockopt;

/// Looks at all sockets of the process; call it after a connection was made. A walk takes some tens of microseconds.
/// Answers how many it changed.
pub fn set_on_new_connections(unacknowledged: Duration) -> io::Result<usize> {
    let mut changed = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may be closed by now.
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        if link.as_os_str().as_encoded_bytes().starts_with(b"socket:") && set_on(descriptor, unacknowledged) {
            changed += 1;
        }
    }
    Ok(changed)
}

/// Answers whether it was a TCP connection without the option, and has it now.
#[expect(unsafe_code, reason = "the library that owns the socket hands out neither it nor its options")]
fn set_on(descriptor: RawFd, unacknowledged: Duration) -> bool {
    // SAFETY: `borrow_raw` asks that the descriptor is not -1, which no name in /proc/self/fd is, and that it stays
    // open while it is borrowed. Its owner, on another thread, may close it between the look at its name and these
    // calls; then they fail with EBADF, or meet another socket that was opened meanwhile. Nothing is read, written or
    // closed through it, and an option that trades bandwidth for latency breaks no promise of any socket.
    let socket = unsafe { BorrowedFd::borrow_raw(descriptor) };
    if sockopt::tcp_nodelay(socket) != Ok(false) || sockopt::set_tcp_nodelay(socket, true).is_err() {
        return false;
    }
    let milliseconds = u32::try_from(unacknowledged.as_millis()).unwrap_or(u32::MAX);
    // Without it a connection is only given up later.
    let _ = sockopt::set_tcp_user_timeout(socket, milliseconds);
    true
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connection_without_the_option_gets_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let address = listener.local_addr().expect("it is bound");
        let plain = TcpStream::connect(address).expect("it listens");
        // Other tests of the process walk as well, and may be the ones to change it.
        set_on_new_connections(Duration::from_secs(20)).expect("/proc is there");
        assert!(plain.nodelay().expect("it can be asked"));
        let limit = |stream: &TcpStream| sockopt::tcp_user_timeout(stream).expect("it can be asked");
        assert_ne!(limit(&plain), 0);
    }
}
