//! Accepts connections, speaks TLS and HTTP on them, and ends those that take
//! too long or are too many. Knows no answers.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    access::Access,
    credentials::{Credentials, Refreshed},
    profile::MAX_SECONDS,
    routers,
};
use crate::agent::{config::Http, log, state::State};

/// Most connections at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 128;
/// How long a client may take for its part of TLS.
const TLS_WITHIN: Duration = Duration::from_secs(10);
/// How long for its request.
const HEADER_WITHIN: Duration = Duration::from_secs(10);
/// How long for all of it: the longest profile, and a minute to take it.
const ALL_WITHIN: Duration = Duration::from_secs(MAX_SECONDS + 60);
/// Longest request line with its headers.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// How often the files of certificates and token are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Pause when no connection can be accepted, as when files run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The server, ready to run.
pub(in crate::agent) struct Server {
    listener: TcpListener,
    connections: Connections,
}

/// What serves a connection.
#[derive(Clone)]
struct Connections {
    state: Arc<State>,
    credentials: Arc<Credentials>,
    /// For clients that showed a certificate, and for those that did not.
    certified: Router,
    anonymous: Router,
}

impl Server {
    /// Reads what it is to show, and says who can reach it.
    ///
    /// # Errors
    /// A file with a certificate, a key or the token will not do.
    pub(in crate::agent) fn new(
        http: &Http,
        listener: TcpListener,
        state: Arc<State>,
    ) -> Result<Self> {
        let credentials = Arc::new(Credentials::load(http)?);
        let is_local = listener.local_addr().context("listen")?.ip().is_loopback();
        let wants_certificate = http
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca_file.is_some());
        let access = Access {
            credentials: Arc::clone(&credentials),
            agent: Arc::clone(&state),
            is_local,
            is_open: http.insecure,
            wants_certificate,
            has_certificate: false,
        };
        if !is_local {
            warn(http, wants_certificate);
        }
        let [anonymous, certified] = [false, true].map(|has_certificate| Access {
            has_certificate,
            ..access.clone()
        });
        let [anonymous, certified] = routers(&state, [anonymous, certified]);
        Ok(Self {
            listener,
            connections: Connections {
                state,
                credentials,
                certified,
                anonymous,
            },
        })
    }

    /// What looks at the files again when it is called.
    pub(in crate::agent) fn refresher(&self) -> Refresher {
        Refresher {
            state: Arc::clone(&self.connections.state),
            credentials: Arc::clone(&self.connections.credentials),
        }
    }

    /// Accepts without end. Dropping it ends every connection.
    pub(in crate::agent) async fn run(self) {
        let refresher = self.refresher();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok(_) if open.len() >= MAX_CONNECTIONS => {
                        self.connections.refuse("connections");
                    }
                    Ok((stream, _)) => {
                        open.spawn(self.connections.clone().serve(stream));
                    }
                    Err(error) => {
                        self.connections.refuse("accept");
                        log::warn("no connection can be accepted", &[("error", &error)]);
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = open.join_next(), if !open.is_empty() => {}
                _ = look.tick() => refresher.refresh(),
            }
        }
    }
}

impl Connections {
    async fn serve(self, stream: TcpStream) {
        let Some(tls) = self.credentials.current().tls.clone() else {
            let router = self.anonymous.clone();
            return self.answer(stream, router).await;
        };
        match timeout(TLS_WITHIN, TlsAcceptor::from(tls).accept(stream)).await {
            Ok(Ok(stream)) => {
                let has_certificate = stream.get_ref().1.peer_certificates().is_some();
                let router = match has_certificate {
                    true => self.certified.clone(),
                    false => self.anonymous.clone(),
                };
                self.answer(stream, router).await;
            }
            Ok(Err(_)) => self.refuse("tls"),
            Err(_) => self.refuse("timeout"),
        }
    }

    /// One request and its answer: a connection for each keeps what slow clients
    /// can take bounded, and scrapes come seldom.
    async fn answer(&self, stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_WITHIN)
            .max_buf_size(MAX_HEADER_BYTES)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        match timeout(ALL_WITHIN, connection).await {
            Ok(Err(error)) if error.is_timeout() => self.refuse("timeout"),
            Err(_) => self.refuse("timeout"),
            // Answered, or the client is gone.
            Ok(_) => {}
        }
    }

    fn refuse(&self, reason: &str) {
        let refused = &self.state.metrics.refused;
        refused.with_label_values(&[reason]).inc();
    }
}

/// Looks at the files again.
pub(in crate::agent) struct Refresher {
    state: Arc<State>,
    credentials: Arc<Credentials>,
}

impl Refresher {
    /// Takes over what has changed.
    pub(in crate::agent) fn refresh(&self) {
        let result = match self.credentials.refresh() {
            Refreshed::Same => return,
            Refreshed::Changed => {
                log::info("certificates and token read again", &[]);
                "success"
            }
            Refreshed::Failed(why) => {
                log::warn("certificates and token as before", &[("error", &why)]);
                "failure"
            }
        };
        let reloads = &self.state.metrics.credential_reloads;
        reloads.with_label_values(&[result]).inc();
    }
}

/// Says what other machines get.
fn warn(http: &Http, wants_certificate: bool) {
    let listen: &dyn std::fmt::Display = &http.listen;
    match (&http.token_file, wants_certificate) {
        (None, false) if http.insecure => log::warn(
            "anybody who reaches the HTTP server can take profiles: http.insecure",
            &[("listen", listen)],
        ),
        (None, false) => log::warn(
            "other machines get metrics alone: for profiles and targets set http.token_file \
             or http.tls.client_ca_file",
            &[("listen", listen)],
        ),
        (Some(_), _) if http.tls.is_none() => log::warn(
            "the token can be read on its way: set http.tls",
            &[("listen", listen)],
        ),
        _ => {}
    }
}
