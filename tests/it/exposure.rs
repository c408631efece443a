//! Who reaches a sidecar: this machine alone, unless somebody said otherwise.
//!
//! A namespace of its own for the one who tries would need rights that neither containers nor all desktops give. It is
//! not needed either: to an address of this machine that is not the loopback, the kernel delivers what a process sends
//! to it exactly as what comes from outside. So the addresses of this machine are tried from here.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream},
};

use serde_json::Value;

use crate::harness::{PATIENCE, Redis, Sidecar, run};

/// Addresses that lead to this machine, and are not the one on which a sidecar listens.
fn other_addresses() -> Vec<SocketAddr> {
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), 0))];
    // `|-- 192.0.2.2`, and below it `/32 host LOCAL`.
    let trie = fs::read_to_string("/proc/net/fib_trie").expect("Linux has it");
    let mut last = "";
    for line in trie.lines().map(str::trim) {
        if line == "/32 host LOCAL"
            && let Some(address) = last.strip_prefix("|-- ").and_then(|address| address.parse::<Ipv4Addr>().ok())
            && address != Ipv4Addr::LOCALHOST
        {
            addresses.push((address, 0).into());
        }
        last = line;
    }
    // Address, index of the interface, and more, all in hexadecimal. Not there without IPv6.
    for line in fs::read_to_string("/proc/net/if_inet6").unwrap_or_default().lines() {
        let mut fields = line.split_whitespace();
        let mut field = || fields.next().expect("a line has six fields");
        let address = u128::from_str_radix(field(), 16).expect("it is hexadecimal");
        let interface = u32::from_str_radix(field(), 16).expect("it is hexadecimal");
        addresses.push(SocketAddrV6::new(Ipv6Addr::from_bits(address), 0, 0, interface).into());
    }
    addresses.sort();
    addresses.dedup();
    addresses
}

fn connect(mut address: SocketAddr, port: u16) -> Result<(), ErrorKind> {
    address.set_port(port);
    TcpStream::connect_timeout(&address, PATIENCE).map(drop).map_err(|error| error.kind())
}

#[test]
fn sidecar_is_reached_over_the_loopback_alone() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let ports = sidecar.ports();
    // Those are all: nothing else listens, on whatever address.
    let mut listening = sidecar.listening();
    listening.sort();
    let mut wanted = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    wanted.sort();
    assert_eq!(listening, wanted);

    let mut tried = 0;
    for address in other_addresses() {
        // What listens on every address is reached there, so that a refusal is the sidecar's; else, by a firewall or
        // an interface that is down, nothing can be told.
        let everywhere: IpAddr =
            if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let open = TcpListener::bind((everywhere, 0)).expect("it may listen everywhere");
        let open_port = open.local_addr().expect("a bound listener has an address").port();
        if connect(address, open_port).is_err() {
            continue;
        }
        tried += 1;
        for port in ports {
            assert_eq!(connect(address, port), Err(ErrorKind::ConnectionRefused), "{address} port {port}");
        }
    }
    assert!(tried > 0, "127.0.0.2 at least is this machine");
    for port in ports {
        assert_eq!(connect((Ipv4Addr::LOCALHOST, 0).into(), port), Ok(()));
    }
}

#[test]
fn loopback_is_the_default_and_anything_else_must_be_asked_for() {
    let config = run(&["config", "--json"]);
    let settings: Value = serde_json::from_slice(&config.stdout).expect("it is JSON");
    for (name, default) in [("listen", "127.0.0.1:7379"), ("ops.listen", "127.0.0.1:7380"), ("allow_remote", "false")] {
        let setting = settings.as_array().into_iter().flatten().find(|setting| setting["setting"] == name);
        assert_eq!(setting.map(|setting| &setting["value"]), Some(&default.into()));
    }
    for (flag, wanted) in [("--listen", "allow_remote"), ("--ops-listen", "admin.token_file")] {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let output = run(&["serve", flag, address]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{flag} {address}: {said}");
            assert!(said.contains("is not a loopback address") && said.contains(wanted), "{said}");
        }
    }
}
