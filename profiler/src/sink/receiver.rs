//! Receiver: a server that takes profiles, by whichever protocol. Sends requests
//! as they are and says what became of each; what is in them it does not know.

mod access;
mod connect;
mod grpc;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tonic::transport::Channel;
use ulid::Ulid;

use super::store::{Failure, PutError, one_line};
use super::upload::Destination;
use crate::profile::push::Protocol;
pub use access::Access;

/// How long a request may take, the connection included.
const PUT_LIMIT: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Pyroscope takes nothing older (`reject-older-than`).
const MAX_AGE: Duration = Duration::from_secs(3600);
/// How goprof calls itself in requests.
const AGENT: &str = concat!("goprof/", env!("CARGO_PKG_VERSION"));

/// A server that takes profiles.
pub struct Receiver {
    name: String,
    protocol: Protocol,
    access: Arc<Access>,
    /// None before the first request, and after the connection failed: what the
    /// files of its certificates hold may have changed.
    client: Mutex<Option<Client>>,
}

/// A connection, or several.
#[derive(Clone)]
enum Client {
    Http(reqwest::Client),
    Grpc(Channel),
}

impl Receiver {
    /// Reads every file that there is for access once, and connects to nothing.
    /// `name` is for messages. To be called on a runtime.
    ///
    /// # Errors
    /// A file cannot be read or holds something else, or the URL is none.
    pub fn open(name: &str, protocol: Protocol, access: Access) -> Result<Receiver> {
        // TLS needs a provider, which may be chosen already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let about = || format!("push to {name}");
        let client = client(protocol, &access).with_context(about)?;
        access.headers().with_context(about)?;
        Ok(Receiver {
            name: name.to_owned(),
            protocol,
            access: Arc::new(access),
            client: Mutex::new(Some(client)),
        })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Client>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<Client> {
        if let Some(client) = self.kept().clone() {
            return Ok(client);
        }
        let (protocol, access) = (self.protocol, Arc::clone(&self.access));
        // Reading files should not hold up the runtime, which a channel needs.
        let handle = Handle::current();
        let made = spawn_blocking(move || {
            let _entered = handle.enter();
            client(protocol, &access)
        });
        let made = made.await??;
        *self.kept() = Some(made.clone());
        Ok(made)
    }

    async fn send(&self, bytes: Vec<u8>) -> Result<(), PutError> {
        let local = |error: anyhow::Error| failure(Failure::Unreachable, &format!("{error:#}"));
        let access = Arc::clone(&self.access);
        let headers = spawn_blocking(move || access.headers()).await;
        let headers = headers.map_err(|error| local(error.into()))?;
        let headers = headers.map_err(local)?;
        let client = self.client().await.map_err(local)?;
        match client {
            Client::Http(client) => connect::push(&client, self.access.url(), headers, bytes).await,
            Client::Grpc(channel) => grpc::call(&channel, self.protocol, headers, bytes).await,
        }
    }
}

impl Destination for Receiver {
    /// The key is a ULID of the profile's time.
    async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), PutError> {
        if self.protocol == Protocol::Pyroscope && age(key) > MAX_AGE {
            let message = format!("older than {} minutes", MAX_AGE.as_secs() / 60);
            return Err(failure(Failure::TooOld, &message));
        }
        let sent = tokio::time::timeout(PUT_LIMIT, self.send(bytes)).await;
        let sent = sent.unwrap_or_else(|_| {
            let message = format!("no answer within {} s", PUT_LIMIT.as_secs());
            Err(failure(Failure::Timeout, &message))
        });
        if let Err(error) = &sent
            && matches!(error.failure, Failure::Unreachable | Failure::Timeout)
        {
            *self.kept() = None;
        }
        sent
    }
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.name, self.access.url())
    }
}

fn client(protocol: Protocol, access: &Access) -> Result<Client> {
    Ok(match protocol {
        Protocol::Pyroscope => Client::Http(connect::client(access)?),
        Protocol::Parca | Protocol::Otlp => Client::Grpc(grpc::channel(access)?),
    })
}

/// How old a profile is; nothing where the key does not say.
fn age(key: &str) -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let began = Ulid::from_string(key).map(|id| Duration::from_millis(id.timestamp_ms()));
    let (now, began) = (now.unwrap_or_default(), began.ok());
    began.map_or(Duration::ZERO, |began| now.saturating_sub(began))
}

fn failure(failure: Failure, message: &str) -> PutError {
    PutError {
        failure,
        message: one_line(message),
    }
}

#[cfg(test)]
mod tests;
