//! A proxy in front of a broker, which loses the answers to what is appended.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
};

/// The number of a request to append.
const PRODUCE: [u8; 2] = [0, 0];

/// Listens on a port of its own. The broker behind it must tell its clients that port.
pub struct BrokerProxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    broker: AtomicU16,
    loses: AtomicBool,
    lost: AtomicUsize,
    closed: AtomicBool,
    links: Mutex<Vec<TcpStream>>,
}

impl BrokerProxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        let shared = Arc::<Shared>::default();
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.closed.load(Ordering::Relaxed) {
                    return;
                }
                // Not to be reached: as a port that nothing listens on.
                let broker = accepting.broker.load(Ordering::Relaxed);
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                let _ = carry(&client, &broker, &accepting);
            }
        });
        Self { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where connections go from now on.
    pub fn lead_to(&self, port: u16) {
        self.shared.broker.store(port, Ordering::Relaxed);
    }

    /// Whether the answer to each append is lost from now on, and its connection with it.
    pub fn lose_answers(&self, lose: bool) {
        self.shared.loses.store(lose, Ordering::Relaxed);
    }

    /// How many answers were lost so far.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for BrokerProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        for link in self.shared.links.lock().expect("nothing panics with it").drain(..) {
            let _ = link.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Carries what one connection sends and what it is answered, each way in a thread that ends with it.
fn carry(client: &TcpStream, broker: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    // A broker answers the requests of a connection in their order.
    let asked = Arc::new(Mutex::new(VecDeque::new()));
    shared.links.lock().expect("nothing panics with it").extend([client.try_clone()?, broker.try_clone()?]);
    let (mut from, mut to, noted) = (client.try_clone()?, broker.try_clone()?, asked.clone());
    std::thread::spawn(move || {
        while let Ok(frame) = read_frame(&mut from) {
            noted.lock().expect("nothing panics with it").push_back(frame[4..].starts_with(&PRODUCE));
            if to.write_all(&frame).is_err() {
                break;
            }
        }
        close(&from, &to);
    });
    let (mut from, mut to, shared) = (broker.try_clone()?, client.try_clone()?, shared.clone());
    std::thread::spawn(move || {
        while let Ok(frame) = read_frame(&mut from) {
            let is_of_append = asked.lock().expect("nothing panics with it").pop_front() == Some(true);
            if is_of_append && shared.loses.load(Ordering::Relaxed) {
                shared.lost.fetch_add(1, Ordering::Relaxed);
                break;
            }
            if to.write_all(&frame).is_err() {
                break;
            }
        }
        close(&from, &to);
    });
    Ok(())
}

/// With its length before it.
fn read_frame(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    frame.resize(4 + u32::from_be_bytes(length) as usize, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}

fn close(one: &TcpStream, other: &TcpStream) {
    let _ = one.shutdown(Shutdown::Both);
    let _ = other.shutdown(Shutdown::Both);
}
