//! What lies between a pod and its bucket: a server that knows names, and TLS. The
//! bucket itself is a real S3 server.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use goprof_tests::command;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::tools::LIMIT;

/// The one name that there is; it is this machine.
pub const NAME: &str = "store.goprof.test";
/// Where the server of names listens, as resolv.conf knows no ports.
pub const DNS: &str = "127.0.0.77";

/// Answers questions for names until the test's process ends.
#[track_caller]
pub fn answer_names() {
    let socket = UdpSocket::bind((DNS, 53)).expect("listen on port 53, as root may");
    std::thread::spawn(move || {
        let mut question = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length]) {
                // A client that is gone asks no more.
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

/// The answer to one question (RFC 1035, section 4).
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let (mut name, mut at) = (String::new(), 12);
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name += std::str::from_utf8(question.get(at..at + length)?).ok()?;
        name.push('.');
        at += length;
    }
    let end = at + 4;
    let is_address = question.get(at..end)? == [0, 1, 0, 1];
    let is_known = name.trim_end_matches('.') == NAME;
    // Of the name there is an IPv4 address and nothing else; others are not there.
    let code = if is_known { 0 } else { 3 };
    let answers = u8::from(is_known && is_address);
    let mut answer = question[..2].to_vec();
    answer.extend([0x85, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    answer.extend(&question[12..end]);
    if answers == 1 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}

/// Makes a certificate for [`NAME`] that signs itself, and its key.
#[track_caller]
pub fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let files = ["cert.pem", "key.pem", "request.conf"].map(|name| folder.join(name));
    let [certificate, key, request] = files;
    let text = format!(
        "[req]\ndistinguished_name=name\nprompt=no\nx509_extensions=more\n[name]\n\
         CN=goprof-test\n[more]\nsubjectAltName=DNS:{NAME}\n\
         basicConstraints=critical,CA:FALSE\n"
    );
    std::fs::write(&request, text).expect("write a request");
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ]);
    openssl.arg("-config").arg(request);
    openssl.arg("-keyout").arg(&key);
    openssl.arg("-out").arg(&certificate);
    command::run(&mut openssl, LIMIT, "install openssl").succeeded();
    (certificate, key)
}

/// Speaks TLS before a server, until the test's process ends. Says on which port.
#[track_caller]
pub fn speak_tls(server: SocketAddr, (certificate, key): &(PathBuf, PathBuf)) -> u16 {
    let certificate = CertificateDer::from_pem_file(certificate).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("an address").port();
    listener
        .set_nonblocking(true)
        .expect("a listener for tokio");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // One that does not trust the certificate goes away again.
                    let mut inner = acceptor.accept(stream).await.ok()?;
                    let mut outer = TcpStream::connect(server).await.ok()?;
                    tokio::io::copy_bidirectional(&mut inner, &mut outer)
                        .await
                        .ok()
                });
            }
        });
    });
    port
}
