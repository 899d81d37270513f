//! A certificate of the test's own, and a listener that speaks TLS with it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use goprof_tests::command;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// Makes a certificate for 127.0.0.1 that signs itself, and its key.
#[track_caller]
pub fn certificate(folder: &Path) -> (PathBuf, PathBuf) {
    let paths = ["cert.pem", "key.pem", "request.conf"].map(|name| folder.join(name));
    let [certificate, key, request] = paths;
    let text = "[req]\ndistinguished_name=name\nprompt=no\nx509_extensions=more\n[name]\n\
                CN=goprof-test\n[more]\nsubjectAltName=IP:127.0.0.1\n\
                basicConstraints=critical,CA:FALSE\n";
    std::fs::write(&request, text).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
    ]);
    openssl.arg("-config").arg(request);
    openssl
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    command::run(&mut openssl, Duration::from_secs(60), "install openssl").succeeded();
    (certificate, key)
}

/// Accepts TLS connections.
pub struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    /// Speaks TLS on what `tcp` accepts.
    #[track_caller]
    pub fn new(tcp: TcpListener, (certificate, key): &(PathBuf, PathBuf)) -> Self {
        let certificate = CertificateDer::from_pem_file(certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Self {
            tcp,
            acceptor: TlsAcceptor::from(Arc::new(config)),
        }
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Ok((stream, address)) = self.tcp.accept().await else {
                continue;
            };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
