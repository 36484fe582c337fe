//! The reads that are judged, from request sent to body read, each by a thread that does nothing else.
//!
//! Plain sockets: a client that shared a runtime with two hundred consoles would measure itself. A
//! request that is due while an answer is late is sent right after it, so that none is left out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::desk::TOKEN;
use crate::load::{Dice, SHARDS, Scene};

const SMALL_EVERY: Duration = Duration::from_millis(50);
const LARGE_EVERY: Duration = Duration::from_secs(15);
/// What the reference is called among the kinds.
pub const BARE: &str = "a bare answer of this program";
/// Nobody waits longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sandbox,
    Stopped,
    Page,
    Health,
    EventsOfOne,
    Tail,
    WholeList,
    AllEvents,
    Bare,
}

impl Kind {
    const SMALL: [(Self, &str); 6] = [
        (Self::Sandbox, "a sandbox that runs"),
        (Self::Stopped, "a sandbox that is stopped"),
        (Self::Page, "the list by a label, fifty of them"),
        (Self::Health, "health"),
        (Self::EventsOfOne, "events of one sandbox"),
        (Self::Tail, "the end of a log"),
    ];
    const LARGE: [(Self, &str); 2] =
        [(Self::WholeList, "the whole list"), (Self::AllEvents, "all events")];
    const BARE: [(Self, &str); 1] = [(Self::Bare, BARE)];

    fn path(self, dice: &mut Dice, running: usize) -> String {
        let one = dice.roll(running);
        match self {
            Self::Sandbox => format!("/v1/sandboxes/r{one}"),
            Self::Stopped => format!("/v1/sandboxes/s{}", dice.roll(10_000)),
            Self::Page => format!("/v1/sandboxes?label=shard={}", dice.roll(SHARDS)),
            Self::Health => ["/health", "/healthz", "/readyz"][dice.roll(3)].to_owned(),
            Self::EventsOfOne => format!("/v1/events?sandbox=r{one}"),
            Self::Tail => format!("/v1/sandboxes/r{one}/logs?tail=4096"),
            Self::WholeList => "/v1/sandboxes".to_owned(),
            Self::AllEvents => "/v1/events".to_owned(),
            Self::Bare => "/".to_owned(),
        }
    }
}

/// Milliseconds by kind.
#[derive(Default)]
pub struct Reads {
    times: Vec<(&'static str, bool, Vec<f64>)>,
}

impl Reads {
    pub fn add(&mut self, more: Self) {
        for (what, small, ms) in more.times {
            match self.times.iter_mut().find(|(known, ..)| *known == what) {
                Some((_, _, known)) => known.extend(ms),
                None => self.times.push((what, small, ms)),
            }
        }
    }

    /// All that are judged.
    pub fn small(&self) -> Vec<f64> {
        let judged = self.times.iter().filter(|(_, small, _)| *small);
        judged.flat_map(|(.., ms)| ms.iter().copied()).collect()
    }

    pub fn by_kind(&self) -> impl Iterator<Item = (&'static str, &[f64])> {
        let times = self.times.iter().filter(|(.., ms)| !ms.is_empty());
        times.map(|(what, _, ms)| (*what, ms.as_slice()))
    }
}

/// One client: what it asks for, how often, and of whom.
struct Client {
    number: u64,
    kinds: &'static [(Kind, &'static str)],
    every: Duration,
    address: SocketAddr,
}

/// Starts all clients. They end when the load does.
pub fn begin(scene: &Arc<Scene>, running: usize) -> Vec<JoinHandle<Reads>> {
    let client = |number, kinds, every, address| Client { number, kinds, every, address };
    let clients = [
        client(0, &Kind::SMALL[..], SMALL_EVERY, scene.address),
        client(1, &Kind::SMALL[..], SMALL_EVERY, scene.address),
        client(2, &Kind::LARGE[..], LARGE_EVERY, scene.address),
        client(3, &Kind::BARE[..], SMALL_EVERY, bare_server()),
    ];
    clients
        .map(|client| {
            let scene = Arc::clone(scene);
            std::thread::spawn(move || client.run(&scene, running))
        })
        .into()
}

/// The reference: answers at once whatever is asked, so that what it takes is the machine's doing.
fn bare_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        // A request comes in one piece, and the client's end is the end.
        while stream.read(&mut request).is_ok_and(|count| count > 0) {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        }
    });
    address
}

impl Client {
    fn run(self, scene: &Scene, running: usize) -> Reads {
        let judged = self.kinds == Kind::SMALL;
        let mut dice = Dice::new(scene.seed, 9_000 + self.number);
        let mut reads = Reads {
            times: self.kinds.iter().map(|(_, what)| (*what, judged, Vec::new())).collect(),
        };
        let mut connection = None;
        let mut due = Instant::now() + self.every / 2;
        for round in 0.. {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due += self.every;
            if scene.stop.is_cancelled() {
                break;
            }
            // The large ones in turn; the small ones by chance, a sandbox that runs most of all.
            let picked = match judged {
                true => [0, 0, 0, 1, 2, 2, 3, 4, 5][dice.roll(9)],
                false => round % self.kinds.len(),
            };
            let path = self.kinds[picked].0.path(&mut dice, running);
            match timed(&mut connection, self.address, &path) {
                Ok(took) => reads.times[picked].2.push(took.as_secs_f64() * 1000.0),
                Err(error) => {
                    scene.tally.fail(format!("GET {path}: {error}"));
                    connection = None;
                }
            }
        }
        reads
    }
}

fn timed(
    connection: &mut Option<Connection>,
    address: SocketAddr,
    path: &str,
) -> io::Result<Duration> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::open(address)?),
    };
    let began = Instant::now();
    connection.get(path)?;
    Ok(began.elapsed())
}

/// Just enough of HTTP/1.1 for the answers of one server.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

impl Connection {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { stream, buffer: vec![0; 1 << 20], filled: 0 })
    }

    /// Asks, and reads the answer to its end.
    fn get(&mut self, path: &str) -> io::Result<()> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        self.filled = 0;
        let body = loop {
            self.more()?;
            let head = self.buffer[..self.filled].windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(at) = head {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..body]).to_ascii_lowercase();
        if !head.starts_with("http/1.1 200") {
            let line = head.lines().next().unwrap_or_default().to_owned();
            return Err(io::Error::other(line));
        }
        match head.split_once("content-length: ") {
            Some((_, rest)) => {
                let digits = rest.lines().next().unwrap_or_default();
                let length: usize = digits.trim().parse().map_err(io::Error::other)?;
                self.skip(length + body)
            }
            None => self.skip_to_last_chunk(),
        }
    }

    /// Reads on until so many bytes have come, and keeps none of them.
    fn skip(&mut self, length: usize) -> io::Result<()> {
        let mut left = length - self.filled;
        while left > 0 {
            self.filled = 0;
            self.more()?;
            left -= self.filled;
        }
        Ok(())
    }

    fn skip_to_last_chunk(&mut self) -> io::Result<()> {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        while !self.buffer[..self.filled].ends_with(END) {
            if self.filled > self.buffer.len() / 2 {
                // Nothing is kept but what may be the first part of an end.
                self.buffer.copy_within(self.filled - END.len()..self.filled, 0);
                self.filled = END.len();
            }
            self.more()?;
        }
        Ok(())
    }

    fn more(&mut self) -> io::Result<()> {
        let count = self.stream.read(&mut self.buffer[self.filled..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.filled += count;
        Ok(())
    }
}
