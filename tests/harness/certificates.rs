//! Certificates of the tests' own, made with openssl as an operator may.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command;

/// An authority that signs certificates, with all its files in a folder.
pub struct Authority {
    folder: PathBuf,
    name: String,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// The key, in PEM.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority.
    #[track_caller]
    pub fn new(folder: &Path, name: &str) -> Self {
        let authority = Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
        };
        authority.make(name, "authority", &[]);
        authority
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.file(&self.name, "pem")
    }

    /// Signs a certificate for this machine, good for servers and clients.
    #[track_caller]
    pub fn issue(&self, name: &str) -> Pair {
        let key = self.file(&self.name, "key");
        let certificate = self.certificate();
        let by = [
            "-CA".as_ref(),
            certificate.as_path(),
            "-CAkey".as_ref(),
            &key,
        ];
        self.make(name, "leaf", &by)
    }

    fn file(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    #[track_caller]
    fn make(&self, name: &str, kind: &str, by: &[&Path]) -> Pair {
        let request = self.file(name, "conf");
        let text = format!(
            "[req]\ndistinguished_name=name\nprompt=no\n[name]\nCN={name}\n\
             [authority]\nbasicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n\
             [leaf]\nbasicConstraints=critical,CA:FALSE\n\
             subjectAltName=IP:127.0.0.1,DNS:localhost\n\
             extendedKeyUsage=serverAuth,clientAuth\n"
        );
        std::fs::write(&request, text).expect("write a request");
        let pair = Pair {
            certificate: self.file(name, "pem"),
            key: self.file(name, "key"),
        };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"]);
        openssl.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-extensions", kind]);
        openssl.arg("-config").arg(request).args(by);
        openssl.arg("-keyout").arg(&pair.key);
        openssl.arg("-out").arg(&pair.certificate);
        command::run(&mut openssl, Duration::from_secs(60), "install openssl 3").succeeded();
        pair
    }
}
