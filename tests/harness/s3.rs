//! A real S3 server to break: s3s-fs, which keeps a bucket as a folder, and a
//! proxy before it that answers with errors, is slow or cuts connections.

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::command::{self, Running};
use crate::quiet;

const VERSION: &str = "0.14.1";
const REMEDY: &str = "cargo builds it from crates.io the first time";
const KEY: &str = "goprof-test";
const SECRET: &str = "goprof-test-secret";
/// The one bucket.
pub const BUCKET: &str = "profiles";

/// A server; dropping it kills it.
pub struct Server {
    root: PathBuf,
    port: u16,
    running: Option<Running>,
}

impl Server {
    /// Starts a server with an empty bucket below `root`.
    #[track_caller]
    pub fn start(root: &Path) -> Server {
        std::fs::create_dir_all(root.join(BUCKET)).expect("make the bucket");
        let free = TcpListener::bind("127.0.0.1:0").expect("find a free port");
        let port = free.local_addr().expect("a port").port();
        drop(free);
        let mut server = Server {
            root: root.to_owned(),
            port,
            running: None,
        };
        server.restart();
        server
    }

    /// Kills the server, whatever it is doing.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// Starts the server again on the same port and folder.
    #[track_caller]
    pub fn restart(&mut self) {
        let port = self.port.to_string();
        let mut command = Command::new(program());
        command
            .args(["--host", "127.0.0.1", "--port", &port])
            .args(["--access-key", KEY, "--secret-key", SECRET])
            .arg(&self.root);
        self.running = Some(Running::start(&mut command, REMEDY));
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(self.address()).is_err() {
            assert!(Instant::now() < deadline, "s3s-fs does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The folder that is the bucket.
    pub fn bucket(&self) -> PathBuf {
        self.root.join(BUCKET)
    }
}

/// What a client sets in the environment to reach a server at an address.
pub fn options(address: SocketAddr) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    let options = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
        ("AWS_TIMEOUT", "2 seconds"),
    ];
    options
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

/// The server's program, which cargo builds the first time.
#[track_caller]
fn program() -> PathBuf {
    let tools = crate::target_dir().join("tools");
    let program = tools.join("bin/s3s-fs");
    if program.exists() {
        return program;
    }
    let _turn = quiet::building();
    let mut install = Command::new("cargo");
    install
        .args(["install", "s3s-fs", "--version", VERSION, "--locked"])
        // Built faster; it serves a handful of requests.
        .args(["--features", "binary", "--debug", "--quiet", "--root"])
        .arg(&tools)
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    command::run(&mut install, Duration::from_secs(1_800), REMEDY).succeeded();
    program
}

/// What the proxy does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: bytes pass.
    None,
    /// Answers each request with this status.
    Answer(u16),
    /// Passes that many bytes to the server, then cuts both connections.
    CutAfter(usize),
    /// Passes a request, and cuts the connection before the answer.
    CutAnswer,
    /// Takes the request and says nothing.
    Silence,
}

/// A proxy before a server. Its thread ends with the test's process.
pub struct Proxy {
    address: SocketAddr,
    fault: Arc<Mutex<Fault>>,
    hits: Arc<AtomicU64>,
}

impl Proxy {
    /// A proxy that lets everything pass.
    #[track_caller]
    pub fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let proxy = Proxy {
            address: listener.local_addr().expect("an address"),
            fault: Arc::new(Mutex::new(Fault::None)),
            hits: Arc::default(),
        };
        let (fault, hits) = (Arc::clone(&proxy.fault), Arc::clone(&proxy.hits));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let fault = *fault.lock().unwrap_or_else(PoisonError::into_inner);
                let hits = Arc::clone(&hits);
                // A connection that breaks is what this is for.
                std::thread::spawn(move || serve(client, server, fault, &hits));
            }
        });
        proxy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it does with connections from now on.
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// How many connections met a fault.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }
}

/// One request for each connection: `Connection: close` is what the proxy makes
/// of it, so that each meets the fault of its time.
fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    fault: Fault,
    hits: &AtomicU64,
) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut request = read_request(&mut client)?;
    if fault != Fault::None {
        hits.fetch_add(1, Ordering::Relaxed);
    }
    let end = request.windows(2).position(|w| w == b"\r\n").unwrap_or(0);
    request.splice(end..end, *b"\r\nConnection: close");
    match fault {
        Fault::Answer(status) => {
            return write!(
                client,
                "HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Fault::Silence => {
            std::thread::sleep(Duration::from_secs(30));
            return Ok(());
        }
        Fault::CutAfter(bytes) => request.truncate(bytes),
        Fault::None | Fault::CutAnswer => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(&request)?;
    if matches!(fault, Fault::CutAfter(_)) {
        return Ok(());
    }
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    if fault == Fault::CutAnswer {
        return Ok(());
    }
    client.write_all(&answer)
}

/// Reads head and body of one request.
fn read_request(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut chunk = [0; 65_536];
    loop {
        let head = request.windows(4).position(|w| w == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&request[..head]).to_lowercase();
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .and_then(|length| length.trim().parse::<usize>().ok())
                .unwrap_or(0);
            if request.len() >= head + 4 + length {
                return Ok(request);
            }
        }
        match client.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => request.extend_from_slice(&chunk[..read]),
        }
    }
}
