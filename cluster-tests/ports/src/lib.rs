//! TCP ports that no other test has. A crate of its own, so that the tests of every crate can use it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Below the range from which the kernel gives ports to clients (32,768 and up), above the well-known ones.
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// Ports that are this test's own until this is dropped.
///
/// That a port is free now does not keep it: tests run side by side, and the ports of a node that a test has killed
/// look free to all others. So each port has a lock file, which is held, across threads and processes alike.
#[derive(Debug)]
pub struct Ports {
    numbers: Vec<u16>,
    /// Held, never read.
    _locks: Vec<File>,
}

impl Ports {
    /// Takes ports that nobody has.
    ///
    /// # Panics
    /// If there are not as many, or the folder for temporary files can't be written to.
    pub fn take(count: usize) -> Self {
        let folder = std::env::temp_dir().join("sandkeeper-test-ports");
        fs::create_dir_all(&folder).expect("the folder for temporary files is writable");
        let (mut numbers, mut locks) = (Vec::new(), Vec::new());
        for port in RANGE {
            if numbers.len() == count {
                break;
            }
            let lock = File::create(folder.join(port.to_string())).expect("a lock file can be made");
            // Others than tests listen too.
            if lock.try_lock().is_ok() && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                numbers.push(port);
                locks.push(lock);
            }
        }
        assert_eq!(numbers.len(), count, "ports in {RANGE:?} that nobody has");
        Self { numbers, _locks: locks }
    }

    /// `127.0.0.1:port`, of the one at this place, from 0.
    ///
    /// # Panics
    /// If fewer were taken.
    pub fn socket(&self, index: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.numbers[index]).into()
    }

    /// `127.0.0.1:port`, of each.
    pub fn addresses(&self) -> Vec<String> {
        (0..self.numbers.len()).map(|index| self.socket(index).to_string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Ports;

    #[test]
    fn no_port_is_given_twice_while_it_is_held() {
        let takers: Vec<_> = (0..8).map(|_| std::thread::spawn(|| Ports::take(3))).collect();
        let held: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
        let mut all: Vec<_> = held.iter().flat_map(Ports::addresses).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 24);
    }
}
